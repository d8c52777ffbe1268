"""What is done to runs that no run should have to bear: python -m tests.chaos."""
