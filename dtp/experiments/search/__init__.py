"""Search for hyper-parameters in the search space of a rule, by many runs. ``dtp search --algo RULE``."""
