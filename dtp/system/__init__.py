"""What the operating system gives: files, locks, signals, memory. Imports no torch."""
