"""The command line: from arguments and presets to one configuration, and help. Imports no torch."""
