"""Search for hyper-parameters in the domain of a rule, by many runs. ``dtp search --algo RULE``."""
