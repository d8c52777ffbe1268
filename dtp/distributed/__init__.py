"""How the steps of a batch are spread over processes."""
