"""Search for hyper-parameters in the domain of a rule, by many runs. ``python -m dtp.search --algo RULE``."""
