"""Datasets: LightningDataModules and the table of their statistics. ``--data`` chooses one."""

from dtp.data.options import DATA

__all__ = ["DATA"]
