"""What a configuration asks for, made: data, network with its task, and rule."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.base import Algorithm
from dtp.cli.config import Config
from dtp.data import DATA
from dtp.data.base import ImageData
from dtp.data.cache import data_lock
from dtp.errors import UserError
from dtp.fields import PRECISIONS
from dtp.models import MODELS
from dtp.run.checkpoints import take_weights
from dtp.run.folder import goes_on
from dtp.tasks import TASKS


def build(config: Config) -> tuple[ImageData, Algorithm]:
    """Data module and rule with its network, as ``config`` says; the weights are a function of the seed alone.

    Raises:
        UserError: missing or wrong data, a network that does not fit it, options out of range.
    """
    torch.backends.cuda.matmul.allow_tf32 = config.run.tf32
    torch.backends.cudnn.allow_tf32 = config.run.tf32
    pl.seed_everything(config.run.seed, verbose=False)
    data = DATA.resolve(config.run.data).load()(config.data, seed=config.run.seed)
    _require_made(data, "options")
    # One process of a machine after the other: the first downloads and converts, the others find it done.
    with data_lock(config.run.data, data.data_dir):
        data.prepare_data()
    data.setup()
    if not any(data.sizes.values()):
        raise UserError(f"setup of {type(data).__name__} has read no images; have it call super().setup(stage).")
    # Reading data may have drawn random numbers, and must not change the first weights.
    pl.seed_everything(config.run.seed, verbose=False)
    task = TASKS[config.run.task].of_data(data, config.run.clusters)
    network = MODELS.resolve(config.run.model).load().for_task(config.model, data.input_shape, task)
    _require_made(network, "layers")
    # A run that goes on has all weights from its checkpoint, and the other run may be gone.
    if config.run.init_weights and not goes_on(config):
        take_weights(network, config.run.init_weights)
    algorithm = ALGORITHMS.resolve(config.run.algo).load()(network, config.algo, seed=config.run.seed)
    _require_made(algorithm, "scores")
    if PRECISIONS[config.run.precision] == "64-true":
        # Lightning does so as well, but after it has loaded a checkpoint into weights of half the precision.
        algorithm.double()
    algorithm.capture_batches = config.run.capture == "auto"
    return data, algorithm.to(memory_format=_memory_format(config.run.memory_format, network))


def _require_made(part: Any, attribute: str) -> None:
    """Raise UserError unless the constructors of all classes above a user's own have run."""
    # Without nn.Module's nothing can be asked of it in the usual way.
    if attribute not in {**vars(part), **vars(part).get("_modules", {})}:
        raise UserError(
            f"__init__ of {type(part).__name__} must call super().__init__ with all that it was given; fix "
            f"{type(part).__name__}."
        )


def _memory_format(name: str, network: torch.nn.Module) -> torch.memory_format:
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    usual = bool(convolutions) and not any(map(_writes_beyond, convolutions))
    channels_last = name == "channels-last" or (name == "auto" and usual)
    return torch.channels_last if channels_last else torch.contiguous_format


def _writes_beyond(convolution: torch.nn.Conv2d) -> bool:
    """Whether the weight gradient of a convolution can end the process with its maps in the order channels-last.

    On CPUs with AVX2 and no AVX-512, oneDNN (3.12, in torch 2.14) copies eight channels of the places that a strided
    1x1 convolution reads, where the maps (of a group) have fewer, and so writes beyond its buffer.
    """
    is_strided = convolution.kernel_size == (1, 1) and convolution.stride != (1, 1)
    return is_strided and convolution.in_channels // convolution.groups < 8
