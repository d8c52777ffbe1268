"""The command line: words, presets and help become one configuration. Imports no torch."""
