"""Making a rule from Python: from any network, with options as keyword arguments."""

from __future__ import annotations

import dataclasses
from abc import ABCMeta
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import nn
from torchmetrics import Metric

from dtp.errors import UserError
from dtp.fields import default_of, made, require_extended
from dtp.models.cutting import as_network

_Rule = TypeVar("_Rule")


class RuleType(ABCMeta):
    """The class of rule classes: ``DTP(network, beta=0.7)`` becomes ``DTP(Network, DTPOptions(beta=0.7), seed)``.

    So every rule, a user's own among them, has a plain constructor of three arguments, and may be called with more.
    """

    Options: Any

    def __call__(
        cls: type[_Rule],
        network: nn.Module | Sequence[nn.Module],
        options: Any = None,
        seed: int | None = None,
        *,
        loss: str | Callable[..., Any] | None = None,
        metrics: Metric | Mapping[str, Metric] | None = None,
        batch: Callable[[Any], tuple[Any, Any]] | None = None,
        input_shape: Sequence[int] | torch.Tensor | None = None,
        **values: Any,
    ) -> _Rule | Any:  # "or anything": else type checkers ask the constructor below it too
        """A rule for a network.

        Args:
            network: one of ours, an ``nn.Sequential``, a list of layers, or a module that can be cut into layers.
            options: an instance of the rule's ``Options``, or a dictionary of them; by keyword they beat it.
            seed: of the noise, from 0; left out, that of ``torch.manual_seed`` or ``seed_everything``.
            loss: what to minimise: a name (option ``loss``), or a function of outputs (B, K) and goals that returns the
                mean over the batch.
            metrics: for validation and test (and training, over an epoch) in place of the task's own, each of one
                number.
            batch: takes inputs and goals, (x, y), out of what the data loader gives.
            input_shape: of one sample, or a batch of them, where the network does not tell it
                (:func:`~dtp.models.cutting.as_network`).
            values: options of the rule, by their names.

        Raises:
            UserError: an option that there is not, or out of range; a network that the rule is not for.
        """
        own_loss = None if isinstance(loss, str) else loss
        if isinstance(loss, str):
            values["loss"] = loss
        kind: Any = cls
        require_extended(kind, cls.__name__)
        options = made(kind.Options, options, values, cls.__name__)
        # As --seed, but up to any number, for those of torch have 64 bits.
        if seed is not None and not (isinstance(seed, Integral) and int(seed) >= 0):
            raise UserError(f"seed: expected a whole number from 0, found {seed!r}.")
        seed = torch.initial_seed() if seed is None else int(seed)
        rule = super().__call__(as_network(network, input_shape), options, seed=seed)
        if own_loss is not None or metrics is not None or batch is not None:
            rule.use(own_loss, metrics, batch)
        # What the rule has beside the network goes where that is, unless it is divided over devices.
        devices = {parameter.device for parameter in rule.network.parameters()}
        found = {rule.device, *(tensor.device for tensor in (*rule.parameters(), *rule.buffers()))}
        return rule.to(*devices) if len(devices) == 1 and found != devices else rule

    @property
    def __signature__(cls) -> Signature:
        """What notebooks show and complete: the options are keywords."""
        kind, empty = Parameter.KEYWORD_ONLY, Parameter.empty
        first = [
            Parameter("network", Parameter.POSITIONAL_OR_KEYWORD),
            Parameter("options", Parameter.POSITIONAL_OR_KEYWORD, default=None),
            Parameter("seed", Parameter.POSITIONAL_OR_KEYWORD, default=None),
        ]
        own = [Parameter(name, kind, default=None) for name in ("metrics", "batch", "input_shape")]
        options = [
            Parameter(
                field.name,
                kind,
                default=default_of(field),
                annotation=field.type or empty,
            )
            for field in (dataclasses.fields(cls.Options) if dataclasses.is_dataclass(cls.Options) else ())
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        ]
        return Signature([*first, *options, *own])
