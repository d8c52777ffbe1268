"""What a user's own type checker reads and must find no fault with: the type check of the project includes it."""

from torch import nn

from dtp import DTP, MLP, Algorithm, as_network, train
from dtp.models.options import MLPOptions

plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
DTP(plain, beta=0.7, noise=[0.1], loss="cross-entropy")
DTP([nn.Linear(64, 32), nn.Linear(32, 10)], input_shape=(64,), metrics=None, seed=1)
DTP(as_network(plain, input_shape=(1, 8, 8)), DTP.Options(beta=0.7), batch=lambda pair: pair)


class MyRule(Algorithm):
    """A rule of a user's own."""


MyRule(MLP(MLPOptions(widths=[12, 10]), (1, 4, 4), 5), lr=0.1)
result = train(algo="dtp", model="mlp", widths=[16], max_epochs=1)
accuracy: float = result.summary["test_accuracy"]
