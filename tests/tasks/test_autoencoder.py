"""Auto-encoders: the pixels that they are compared with, and the way back to the input."""

import torch

from dtp.tasks import Autoencoder


def test_an_autoencoder_is_asked_for_the_pixels_before_normalisation():
    pixels = torch.rand(3, 2, 4, 4)
    mean, std = (0.2, 0.6), (0.5, 0.1)
    x = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    task = Autoencoder((2, 4, 4), mean, std)
    goal = task.goal(x, torch.zeros(3))
    torch.testing.assert_close(goal, pixels.flatten(1))
    assert task.outputs == 32 and goal.min() >= 0 and goal.max() <= 1
    output = torch.randn(3, 32)
    expected = 0.5 * (output.sigmoid() - goal).square().sum(1).mean()
    torch.testing.assert_close(task.loss("squared", output, goal), expected)
    torch.testing.assert_close(task.loss("squared", output, goal, "sum"), 3 * expected)
