"""Measurements of a rule on given batches: angles to backprop, and what linear probes read from its layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtp.algorithms.base import Algorithm
from dtp.contracts import shown
from dtp.diagnostics.alignment import Alignment, update_alignment
from dtp.errors import UserError
from dtp.models.precision import full_precision


def alignment(rule: Algorithm, batch: Any) -> dict[int, Alignment]:
    """How well the update of each layer on a batch matches backprop's: angle in degrees, and relative distance.

    The update is the direction in which the rule would change the forward weights. Measuring changes nothing in the
    rule.

    Args:
        rule: before, during or after its training, with a trainer or without.
        batch: as the data loader gives it, on any device.

    Returns:
        By layer number, from 1, for the layers with trained weights.

    Raises:
        UserError: no rule, or one that has no labels to compare by (``Competitive``), or the batch is none of its task.
    """
    _require_rule("alignment", rule)
    if not rule.task.has_training_goals:
        raise UserError(f"{type(rule).__name__} sorts into clusters without labels, from which backprop could learn.")
    with _mode(rule, training=True):
        x, y = _on_device(rule, batch, training=True)
        if not len(x):
            raise UserError("alignment: expected a batch with images, found one of none.")
        return update_alignment(rule, x, y)


def linear_probes(
    rule: Algorithm,
    train: Iterable[Any],
    test: Iterable[Any],
    kind: str = "ridge",
    penalty: float = 1.0,
    images: int = 2000,
) -> dict[int, float]:
    """Accuracy of a linear classifier on the activations of each layer: how well it can tell the classes apart.

    It is a usual measure for local rules (Nokland and Eidnes 2019; Belilovsky et al. 2019): a useful layer separates
    the classes better than the layer below. Layer 0 is the input. Features are standardised with the statistics of the
    training images.

    Args:
        rule: whose network is looked at, in evaluation mode; its weights stay as they are.
        train: batches, as a data loader gives them, that probes are fitted to.
        test: batches that they are tested on.
        kind: ``ridge`` (one regression of the classes, exact and fast) or ``logistic``.
        penalty: weight of the squared norm, above 0, in units of what a class of one image weighs.
        images: most images of either; features of them all are held in memory.

    Returns:
        By layer number, 0 to N, the share of test images that the probe names right, from 0 to 1.

    Raises:
        UserError: no rule, no labels or those of one class alone, another kind, no batches, or numbers that are not
            finite.
    """
    # A second that importing dtp need not wait for.
    from sklearn.linear_model import LogisticRegression, RidgeClassifier

    _require_rule("linear_probes", rule)
    if kind not in ("ridge", "logistic"):
        raise UserError(f"linear_probes: expected kind ridge or logistic, found {kind!r}.")
    if not penalty > 0:
        raise UserError(f"linear_probes: expected a penalty above 0, found {penalty}.")
    with _mode(rule, training=False):
        (fitted, labels), (tested, wanted) = _features(rule, train, images), _features(rule, test, images)
    if (labels == labels[0]).all():
        raise UserError(
            f"linear_probes: expected training images of two classes or more, found the first {len(labels)} all of "
            f"class {labels[0]}; shuffle the batches, or give more images."
        )
    found = {}
    for n, (features, others) in enumerate(zip(fitted, tested, strict=True)):
        if not (np.isfinite(features).all() and np.isfinite(others).all()):
            where = f"put out by layer {n}" if n else "in the data"
            raise UserError(f"linear_probes: expected finite numbers, found others {where}.")
        mean, std = features.mean(0), features.std(0)
        # A unit that is the same for all images says nothing, and has no deviation to divide by but that of rounding.
        scale = np.where((features.max(0) > features.min(0)) & (std > 0), std, 1)
        if kind == "ridge":
            probe = RidgeClassifier(alpha=penalty)
        else:
            probe = LogisticRegression(C=1 / penalty, max_iter=1000)
        probe.fit((features - mean) / scale, labels)
        found[n] = float(probe.score((others - mean) / scale, wanted))
    return found


def _require_rule(function: str, rule: Any) -> None:
    if not isinstance(rule, Algorithm):
        raise UserError(
            f"{function}: expected a rule, found {shown(rule)}; make one of a network, such as dtp.BP(network)."
        )


@torch.no_grad()
def _features(rule: Algorithm, batches: Iterable[Any], images: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Activations of each layer, flattened, (images, units) for n = 0..N, and labels (images,)."""
    layers: list[list[Tensor]] = [[] for _ in range(rule.network.depth + 1)]
    labels: list[Tensor] = []
    for number, batch in enumerate(batches):
        x, y = _on_device(rule, batch, training=False, goals=False)
        if y.dtype != torch.int64 or y.dim() != 1:
            raise UserError("linear_probes: expected labels, int64 of shape (B,), found others in the batches.")
        with rule.randomness("probes", number):
            for n, s in enumerate(itertools.accumulate(rule.network, lambda s, layer: layer(s), initial=x)):
                layers[n].append(full_precision(s).flatten(1).cpu())
        labels.append(y.cpu())
        if sum(map(len, labels)) >= images:
            break
    if not sum(map(len, labels)) or images < 1:
        raise UserError("linear_probes: expected batches with images, found none, or images below 1.")
    return [torch.cat(found)[:images].numpy() for found in layers], torch.cat(labels)[:images].numpy()


def _on_device(rule: Algorithm, batch: Any, training: bool, goals: bool = True) -> tuple[Tensor, Tensor]:
    batch = rule.transfer_batch_to_device(batch, rule.device, 0)
    return rule.taken(batch, training=training) if goals else rule.unpacked(batch)


class _mode:
    """Within it the rule is in training mode, or in that of evaluation; each module is as before after it."""

    def __init__(self, rule: Algorithm, training: bool):
        self.rule, self.training = rule, training

    def __enter__(self) -> None:
        # Containers of a user's model are no modules of the network, but follow its mode.
        model = getattr(self.rule.network, "model", None)
        parts = [self.rule, *([model] if isinstance(model, nn.Module) else [])]
        self.before = {module: module.training for part in parts for module in part.modules()}
        self.rule.train(self.training)

    def __exit__(self, *error: object) -> None:
        for module, training in self.before.items():
            module.training = training
