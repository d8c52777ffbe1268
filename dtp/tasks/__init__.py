"""What a network is trained to do: classify, reproduce its input, or sort images into clusters. ``--task`` chooses.

A task says what the network's output is compared with, and by which numbers a run is judged. Networks and rules are
the same for all; a network has its task from its constructor, ``network.task``.
"""

from dtp.tasks.autoencoder import Autoencoder
from dtp.tasks.base import Task, require_loss
from dtp.tasks.classification import Classification
from dtp.tasks.clustering import NMI, Clustering, Purity
from dtp.tasks.own_loss import OwnLoss

# By their names on the command line and in checkpoints.
TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Autoencoder, Clustering)}

__all__ = ["NMI", "TASKS", "Autoencoder", "Classification", "Clustering", "OwnLoss", "Purity", "Task", "require_loss"]
