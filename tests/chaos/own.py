"""Mistakes in classes of the user's own: each is told in one sentence that names the class, or its file."""

from dataclasses import dataclass

# What every file of theirs begins with.
IMPORTS = """\
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dtp.algorithms import BP, DTP
from dtp.algorithms.base import Algorithm
from dtp.data.base import ImageData
from dtp.data.small import Digits
from dtp.models import MLP, Network


class Changed:
    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return (self.change(x, y) for x, y in self.loader)


"""


@dataclass(frozen=True)
class Own:
    """A mistake.

    Attributes:
        name: in words.
        flag: of the command line that names the class: algo, model or data.
        code: the file, below :data:`IMPORTS`.
        status: 2, or 1 for an exception of the user's own code, whose traceback helps.
    """

    name: str
    flag: str
    code: str
    status: int = 2

    @property
    def words(self) -> list[str]:
        words = [f"--{self.flag}", "own_part:Own", "--batch-size", "400", "--max-epochs", "1", "--run-dir", "run"]
        if self.flag == "model":
            return [*words, "--algo", "bp"]
        return [*words, "--widths", "8"]


OWN = [
    Own(
        "rule lower_target None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def lower_target(self, n, targets, activations):
        pass
""",
    ),
    Own(
        "rule lower_target tuple",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def lower_target(self, n, targets, activations):
        return (targets[n], 1)
""",
    ),
    Own(
        "rule lower_target signature",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def lower_target(self, n, targets):
        pass
""",
    ),
    Own(
        "rule lower_target in place targets",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def lower_target(self, n, targets, activations):
        targets[n] += 1
        return super().lower_target(n, targets, activations)
""",
    ),
    Own(
        "rule lower_target in place s",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def lower_target(self, n, targets, activations):
        t = activations.s[n-1]
        t += 0.1
        return t
""",
    ),
    Own(
        "rule first_target None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def first_target(self, activations, y):
        pass
""",
    ),
    Own(
        "rule first_target in place",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def first_target(self, activations, y):
        return activations.s[-1].sub_(0.1)
""",
    ),
    Own(
        "rule first_target wrong shape",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def first_target(self, activations, y):
        return activations.s[-1][:, :2]
""",
    ),
    Own(
        "rule forward_loss None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def forward_loss(self, n, output, target):
        pass
""",
    ),
    Own(
        "rule forward_loss vector",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def forward_loss(self, n, output, target):
        return ((output - target)**2).sum(1)
""",
    ),
    Own(
        "rule forward_loss detached",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def forward_loss(self, n, output, target):
        return ((output.detach() - target)**2).sum()
""",
    ),
    Own(
        "rule forward_loss in place",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def forward_loss(self, n, output, target):
        output -= target
        return (output**2).sum()
""",
    ),
    Own(
        "rule forward_loss in place clamp",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def forward_loss(self, n, output, target):
        output.clamp_(0)
        return (output**2).sum()
""",
    ),
    Own(
        "rule feedback_loss None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def feedback_loss(self, n, activations, noise):
        pass
""",
    ),
    Own(
        "rule feedback_loss vector",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def feedback_loss(self, n, activations, noise):
        return self.feedback[n](activations.s[n], activations.contexts[n]).sum(1)
""",
    ),
    Own(
        "rule feedback_loss constant",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def feedback_loss(self, n, activations, noise):
        return torch.zeros(())
""",
    ),
    Own(
        "rule feedback_noise None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def feedback_noise(self, n, activations):
        pass
""",
    ),
    Own(
        "rule feedback_noise tensor",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def feedback_noise(self, n, activations):
        return self.draw_noise(n, activations.s[n - 1])
""",
    ),
    Own(
        "rule activation None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def activation(self, n, output, s_in):
        pass
""",
    ),
    Own(
        "rule activation in place",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def activation(self, n, output, s_in):
        return output.mul_(0.5)
""",
    ),
    Own(
        "rule make_feedback None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def make_feedback(self):
        pass
""",
    ),
    Own(
        "rule turns None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def turns(self):
        pass
""",
    ),
    Own(
        "rule training_batch None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def training_batch(self, x, y):
        super().training_batch(x, y)
""",
    ),
    Own(
        "rule training_batch logits",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def training_batch(self, x, y):
        return super().training_batch(x, y)[0]
""",
    ),
    Own(
        "rule training_batch floats",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def training_batch(self, x, y):
        return super().training_batch(x, y)[0], {'a': 'b'}
""",
    ),
    Own(
        "rule forward_gradients None",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def forward_gradients(self, x, y):
        pass
""",
    ),
    Own(
        "rule forward_gradients list",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def forward_gradients(self, x, y):
        return [1,2,3]
""",
    ),
    Own(
        "rule forward_gradients None grads",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def forward_gradients(self, x, y):
        return self.network(x).detach(), None
""",
    ),
    Own(
        "rule forward_gradients grads of None",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def forward_gradients(self, x, y):
        return self.network(x).detach(), [None for _ in self.forward_parameters]
""",
    ),
    Own(
        "rule forward_gradients wrong logits",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def forward_gradients(self, x, y):
        a, b = super().forward_gradients(x, y)
        return a[:, :3], b
""",
    ),
    Own(
        "rule forward_gradients no graph",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def forward_gradients(self, x, y):
        with torch.no_grad():
            return super().forward_gradients(x, y)
""",
    ),
    Own(
        "rule init raises",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def __init__(self, *args, **kwargs):
        raise ValueError('no')
""",
        status=1,
    ),
    Own(
        "rule init signature",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def __init__(self):
        pass
""",
    ),
    Own(
        "rule init no seed",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def __init__(self, network, options):
        super().__init__(network, options)
""",
    ),
    Own(
        "rule init no super",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def __init__(self, network, options, seed):
        self.a = 1
""",
    ),
    Own(
        "rule configure_optimizers None",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def configure_optimizers(self):
        pass
""",
    ),
    Own(
        "rule configure_optimizers without return",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def configure_optimizers(self):
        super().configure_optimizers()
""",
    ),
    Own(
        "rule feedback_optimizer_list None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def feedback_optimizer_list(self):
        pass
""",
    ),
    Own(
        "rule describe None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def describe(self):
        pass
""",
    ),
    Own(
        "rule describe tensor",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def describe(self):
        return {'a': torch.ones(2)}
""",
    ),
    Own(
        "rule task_loss None",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def task_loss(self, output, y, reduction='mean'):
        pass
""",
    ),
    Own(
        "rule task_loss signature",
        "algo",
        """\
class Own(BP):
    'Mine.'
    def task_loss(self, output, y):
        return output.sum()
""",
    ),
    Own(
        "rule options None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    Options = None
""",
    ),
    Own(
        "rule options required",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    @dataclass
    class Options(DTP.Options):
        alpha: float
""",
    ),
    Own(
        "rule options mutable",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    @dataclass
    class Options(DTP.Options):
        alpha: list = []
""",
    ),
    Own(
        "rule not a lightning hook",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def on_train_start(self, x):
        pass
""",
    ),
    Own(
        "rule hook exits",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def on_train_start(self):
        sys.exit(0)
""",
    ),
    Own(
        "rule batch exits",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def lower_target(self, n, targets, activations):
        sys.exit(0)
""",
    ),
    Own(
        "rule gradient_scale None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def gradient_scale(self, n):
        pass
""",
    ),
    Own(
        "rule feedback_weights None",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def feedback_weights(self):
        pass
""",
    ),
    Own(
        "rule trained_feedback",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.trained_feedback = [77]
""",
    ),
    Own(
        "rule trained_feedback a number",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.trained_feedback = 2
""",
    ),
    Own(
        "rule unknown attribute",
        "algo",
        """\
class Own(DTP):
    'Mine.'
    def lower_target(self, n, targets, activations):
        return self.nothing
""",
        status=1,
    ),
    Own("rule file exits", "algo", "sys.exit(0)"),
    Own("rule file exits 3", "algo", "sys.exit(3)"),
    Own(
        "rule is a function",
        "algo",
        """\
def Own(network, options, seed=0):
    pass
""",
    ),
    Own(
        "rule is a network",
        "algo",
        """\
class Own(Network):
    'Mine.'
""",
    ),
    Own(
        "rule abstract",
        "algo",
        """\
class Own(Algorithm):
    'Mine.'
""",
    ),
    Own(
        "net make_layers None",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        return None
""",
    ),
    Own(
        "net make_layers yields None",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield None
""",
    ),
    Own(
        "net make_layers yields classes",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Linear
""",
    ),
    Own(
        "net make_layers yields list",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield [nn.Flatten(), nn.Linear(self.features, 10)]
""",
    ),
    Own(
        "net make_layers a tensor",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        return torch.zeros(3)
""",
    ),
    Own(
        "net make_layers signature",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self, x):
        pass
""",
    ),
    Own(
        "net LSTM",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.LSTM(self.features, 10))
""",
    ),
    Own(
        "net LSTM in middle",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.LSTM(self.features, 10), nn.Linear(10, 10))
""",
    ),
    Own(
        "net lazy",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
""",
    ),
    Own(
        "net lazy conv",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU())
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 10))
""",
    ),
    Own(
        "net relu inplace first",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(self.features, 7))
        yield nn.Sequential(nn.Linear(7, 10))
""",
    ),
    Own(
        "net sigmoid then relu inplace",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 7), nn.Sigmoid(), nn.ReLU(inplace=True))
        yield nn.Sequential(nn.Linear(7, 10))
""",
    ),
    Own(
        "net wrong in features",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Linear(3, 10))
""",
    ),
    Own(
        "net no flatten",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Linear(self.features, 10))
""",
    ),
    Own(
        "net same layer twice",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        l = nn.Sequential(nn.Flatten(), nn.Linear(self.features, 10))
        yield l
        yield l
""",
    ),
    Own(
        "net no weights",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
""",
    ),
    Own(
        "net lambda",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield (lambda x: x)
""",
    ),
    Own(
        "net functional return None",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        class L(nn.Module):
            def forward(self, x):
                pass
        yield nn.Sequential(nn.Flatten(), L(), nn.Linear(64, 10))
""",
    ),
    Own(
        "net own layer returns None",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        class L(nn.Module):
            def forward(self, x):
                pass
        yield nn.Sequential(nn.Flatten(), nn.Linear(64, 10), L())
""",
    ),
    Own(
        "net own layer without forward",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        class L(nn.Module):
            pass
        yield nn.Sequential(nn.Flatten(), nn.Linear(64, 10), L())
""",
    ),
    Own(
        "net forward None",
        "model",
        """\
class Own(MLP):
    'Mine.'
    def forward(self, x):
        pass
""",
    ),
    Own(
        "net forward tuple",
        "model",
        """\
class Own(MLP):
    'Mine.'
    def forward(self, x):
        return super().forward(x), 1
""",
    ),
    Own(
        "net forward signature",
        "model",
        """\
class Own(MLP):
    'Mine.'
    def forward(self):
        pass
""",
    ),
    Own(
        "net init signature",
        "model",
        """\
class Own(MLP):
    'Mine.'
    def __init__(self):
        super().__init__()
""",
    ),
    Own(
        "net init raises",
        "model",
        """\
class Own(MLP):
    'Mine.'
    def __init__(self, *a):
        raise RuntimeError('no')
""",
        status=1,
    ),
    Own(
        "net init no super",
        "model",
        """\
class Own(MLP):
    'Mine.'
    def __init__(self, options, input_shape, num_classes):
        self.a = 3
""",
    ),
    Own(
        "net init no super module",
        "model",
        """\
class Own(MLP):
    'Mine.'
    def __init__(self, options, input_shape, num_classes):
        nn.Module.__init__(self)
""",
    ),
    Own(
        "net integer weights",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 10).to(torch.int32))
""",
        status=1,
    ),
    Own(
        "net half weights",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 10).half())
""",
    ),
    Own(
        "net meta weights",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 10, device='meta'))
""",
    ),
    Own(
        "net double weights",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 10).double())
""",
    ),
    Own(
        "net conv on flat",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Conv2d(1, 2, 3))
""",
    ),
    Own(
        "net losses wrong",
        "model",
        """\
class Own(MLP):
    'Mine.'
    losses = 5
""",
    ),
    Own(
        "net losses a word",
        "model",
        """\
class Own(MLP):
    'Mine.'
    losses = 'cross-entropy'
""",
    ),
    Own(
        "net exits",
        "model",
        """\
class Own(Network):
    'Mine.'
    def make_layers(self):
        sys.exit(0)
""",
    ),
    Own(
        "data load_train None",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        pass
    load_test = load_train
""",
    ),
    Own(
        "data load_train triple",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return np.zeros((8,1,8,8), np.uint8), np.zeros(8, int), np.zeros(8)
    load_test = load_train
""",
    ),
    Own(
        "data load_train only images",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return np.zeros((8,1,8,8), np.uint8)
    load_test = load_train
""",
    ),
    Own(
        "data load_train list",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return [[1]], [1]
    load_test = load_train
""",
    ),
    Own(
        "data load_train tensors",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return torch.zeros((40,1,8,8), dtype=torch.uint8), torch.arange(40) % 2
    load_test = load_train
""",
    ),
    Own(
        "data labels None",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return np.zeros((8,1,8,8), np.uint8), None
    load_test = load_train
""",
    ),
    Own(
        "data labels words",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return np.zeros((8,1,8,8), np.uint8), ['a'] * 8
    load_test = load_train
""",
    ),
    Own(
        "data labels one-hot",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return np.zeros((8,1,8,8), np.uint8), np.zeros((8, 2), int)
    load_test = load_train
""",
    ),
    Own(
        "data labels half",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train(self):
        return np.zeros((8,1,8,8), np.uint8), np.full(8, .5)
    load_test = load_train
""",
    ),
    Own(
        "data num_classes word",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 'two'
    def load_train(self):
        return np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2
    def load_test(self):
        return self.load_train()
""",
    ),
    Own(
        "data num_classes float",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2.0
    def load_train(self):
        return np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2
    def load_test(self):
        return self.load_train()
""",
    ),
    Own(
        "data num_classes 0",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 0
    def load_train(self):
        return np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2
    def load_test(self):
        return self.load_train()
""",
    ),
    Own(
        "data name None",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = None, 2
    def load_train(self):
        return np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2
    def load_test(self):
        return self.load_train()
""",
    ),
    Own(
        "data load_train signature",
        "data",
        """\
class Own(ImageData):
    'Mine.'
    name, num_classes = 'own', 2
    def load_train():
        pass
    load_test = load_train
""",
    ),
    Own(
        "data init signature",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def __init__(self):
        super().__init__()
""",
    ),
    Own(
        "data init raises",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def __init__(self, *a, **k):
        raise ValueError('no')
""",
        status=1,
    ),
    Own(
        "data init no super",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def __init__(self, *a, **k):
        pass
""",
    ),
    Own(
        "data prepare raises",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def prepare_data(self):
        raise OSError('no')
""",
        status=1,
    ),
    Own(
        "data setup without super",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def setup(self, stage=None):
        pass
""",
    ),
    Own(
        "data setup signature",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def setup(self):
        pass
""",
    ),
    Own(
        "data load_val None pair",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def load_val(self):
        return None, None
""",
    ),
    Own(
        "data loader triples",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: (x, y, 1))
""",
    ),
    Own(
        "data loader dicts",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: {'x': x, 'y': y})
""",
    ),
    Own(
        "data loader None",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        pass
""",
    ),
    Own(
        "data loader of None",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return [None, None]
""",
    ),
    Own(
        "data loader no labels",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: x)
""",
    ),
    Own(
        "data loader empty",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return []
""",
    ),
    Own(
        "data loader wrong images",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: (x[:, :, :3], y))
""",
    ),
    Own(
        "data loader labels float",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: (x, y.float()))
""",
    ),
    Own(
        "data loader fewer labels",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: (x, y[:3]))
""",
    ),
    Own(
        "data loader images uint8",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: (x.byte(), y))
""",
    ),
    Own(
        "data loader numpy",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def train_dataloader(self):
        return Changed(super().train_dataloader(), lambda x, y: (x.numpy(), y.numpy()))
""",
    ),
    Own(
        "data val loader triples",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def val_dataloader(self):
        return Changed(super().val_dataloader(), lambda x, y: (x, y, 1))
""",
    ),
    Own(
        "data test loader triples",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def test_dataloader(self):
        return Changed(super().test_dataloader(), lambda x, y: (x, y, 1))
""",
    ),
    Own(
        "data test loader None",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def test_dataloader(self):
        pass
""",
    ),
    Own(
        "data val loader None",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def val_dataloader(self):
        pass
""",
    ),
    Own(
        "data own_statistics None",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def own_statistics(self, train):
        pass
""",
    ),
    Own(
        "data own_statistics pair",
        "data",
        """\
class Own(Digits):
    'Mine.'
    name = 'own'
    def own_statistics(self, train):
        return 0.5, 0.5
""",
    ),
    Own(
        "data exits",
        "data",
        """\
class Own(Digits):
    'Mine.'
    def load_train(self):
        sys.exit(0)
""",
    ),
    Own(
        "data split word",
        "data",
        """\
class Own(Digits):
    'Mine.'
    split = 'nothing'
""",
    ),
]
