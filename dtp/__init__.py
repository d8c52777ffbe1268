"""Train deep networks by target propagation and its relatives.

``from dtp import DTP``: every learning rule and network is here. Each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtp.algorithms.base import Algorithm as Algorithm
    from dtp.algorithms.bp import BP as BP
    from dtp.algorithms.ccl import CCL as CCL
    from dtp.algorithms.contrastive import CHL as CHL
    from dtp.algorithms.contrastive import GeneRec as GeneRec
    from dtp.algorithms.denoising_autoencoder import DenoisingAutoencoder as DenoisingAutoencoder
    from dtp.algorithms.dfc import DFC as DFC
    from dtp.algorithms.dfc import DFCSS as DFCSS
    from dtp.algorithms.dfc import DFCSSA as DFCSSA
    from dtp.algorithms.dfc import StrongDFC as StrongDFC
    from dtp.algorithms.direct import DDTPRHL as DDTPRHL
    from dtp.algorithms.direct import DFA as DFA
    from dtp.algorithms.direct import DDTPControl as DDTPControl
    from dtp.algorithms.direct import DDTPLinear as DDTPLinear
    from dtp.algorithms.drl import DRL as DRL
    from dtp.algorithms.drtp import DRTP as DRTP
    from dtp.algorithms.dtp import DTP as DTP
    from dtp.algorithms.dtp import ParallelDTP as ParallelDTP
    from dtp.algorithms.dualprop import DualProp as DualProp
    from dtp.algorithms.feedback_alignment import BRSF as BRSF
    from dtp.algorithms.feedback_alignment import FA as FA
    from dtp.algorithms.feedback_alignment import FRSF as FRSF
    from dtp.algorithms.feedback_alignment import USF as USF
    from dtp.algorithms.feedback_alignment import KolenPollack as KolenPollack
    from dtp.algorithms.feedback_alignment import WeightMirror as WeightMirror
    from dtp.algorithms.fw_dtp import FWDTP as FWDTP
    from dtp.algorithms.gait import GAIT as GAIT
    from dtp.algorithms.hybrid import Hybrid as Hybrid
    from dtp.algorithms.pepita import PEPITA as PEPITA
    from dtp.algorithms.sdtp import AOSDTP as AOSDTP
    from dtp.algorithms.sdtp import SDTP as SDTP
    from dtp.algorithms.single_layer import Competitive as Competitive
    from dtp.algorithms.single_layer import Delta as Delta
    from dtp.algorithms.single_layer import Hebb as Hebb
    from dtp.algorithms.target_propagation import TargetPropagation as TargetPropagation
    from dtp.algorithms.tp import TP as TP
    from dtp.algorithms.vanilla_dtp import VanillaDTP as VanillaDTP
    from dtp.diagnostics.callback import AlignmentCallback as AlignmentCallback
    from dtp.diagnostics.measures import alignment as alignment
    from dtp.diagnostics.measures import linear_probes as linear_probes
    from dtp.errors import UserError as UserError
    from dtp.models.cutting import as_network as as_network
    from dtp.models.cutting import layers as layers
    from dtp.models.discrete import Discrete as Discrete
    from dtp.models.lenet import LeNet as LeNet
    from dtp.models.lenet import LeNet5 as LeNet5
    from dtp.models.locally_connected import ConvNet as ConvNet
    from dtp.models.locally_connected import LocallyConnected as LocallyConnected
    from dtp.models.mlp import MLP as MLP
    from dtp.models.network import Network as Network
    from dtp.models.resnet import ResNet18 as ResNet18
    from dtp.models.resnet import ResNet20 as ResNet20
    from dtp.models.resnet import ResNet34 as ResNet34
    from dtp.models.resnet import ResNet56 as ResNet56
    from dtp.models.square import Square as Square
    from dtp.models.stochastic import Stochastic as Stochastic
    from dtp.models.tied_autoencoder import TiedAutoencoder as TiedAutoencoder
    from dtp.models.vgg import VGG as VGG
    from dtp.run.from_python import train as train
    from dtp.run.loading import load as load

__version__ = "0.1.0"

# Besides rules and networks, which their registries name.
_FUNCTIONS = {
    "AlignmentCallback": "dtp.diagnostics.callback:AlignmentCallback",
    "UserError": "dtp.errors:UserError",
    "alignment": "dtp.diagnostics.measures:alignment",
    "as_network": "dtp.models.cutting:as_network",
    "layers": "dtp.models.cutting:layers",
    "linear_probes": "dtp.diagnostics.measures:linear_probes",
    "load": "dtp.run.loading:load",
    "train": "dtp.run.from_python:train",
}


def _names() -> dict[str, str]:
    """What is here, by name, and where it lies. Imports no torch."""
    from dtp.algorithms import CLASSES as rules
    from dtp.models import CLASSES as networks

    return {**rules, **networks, **_FUNCTIONS}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_names())
    # Of what else Python itself asks for, nothing is here, and nothing need be imported to say so.
    found = None if name.startswith("__") else _names().get(name)
    if found is None:
        raise AttributeError(f"module 'dtp' has no attribute {name!r}")
    from dtp.registry import import_object

    return import_object(found)


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})
