"""How the steps of a batch are distributed over processes."""
