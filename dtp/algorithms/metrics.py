"""Running means of training metrics, kept on the device and read only when they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dtp.models.precision import has_float64


class RunningMeans:
    """Means of scalar tensors, weighted; adding never waits for the device.

    Numbers that the host knows anyway, as counts, may lie there.
    """

    def __init__(self):
        # By the names that were added together: sums, (len(names),), and the sum of their weights.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._weights: dict[tuple[str, ...], float] = {}

    def add(self, names: tuple[str, ...], values: Tensor, weight: float = 1.0) -> None:
        """Add the values, (len(names),) as :func:`as_vector` makes them, of scalars."""
        if names in self._sums:
            self._sums[names].add_(values, alpha=weight)
            self._weights[names] += weight
        elif names:
            self._sums[names], self._weights[names] = values * weight, weight

    def tensors(self) -> dict[str, Tensor]:
        """The means of this process, scalars on the device; nothing is waited for."""
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for names, values in self._sums.items():
            for name, value in zip(names, values.unbind(), strict=True):
                sums[name] = value + sums[name] if name in sums else value
                weights[name] = weights.get(name, 0.0) + self._weights[names]
        return {name: value / weights[name] for name, value in sums.items()}

    def compute(self, over_ranks: bool = False) -> dict[str, float]:
        """The means. One transfer from the device for all of them.

        Args:
            over_ranks: whether to weigh in what other ranks have added under the same names; all must then call this.
        """
        if not self._sums:
            return {}
        sums = torch.cat(list(self._sums.values()))
        if over_ranks:
            # Ranks have equal shares of every batch, so their means weigh alike.
            torch.distributed.all_reduce(sums)
            sums /= torch.distributed.get_world_size()
        totals: dict[str, list[float]] = {}
        places = ((name, self._weights[names]) for names in self._sums for name in names)
        for (name, weight), value in zip(places, sums.tolist(), strict=True):
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += weight
        return {name: value / weight for name, (value, weight) in totals.items()}

    def reset(self) -> None:
        """Forget all that was added, names too."""
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> list[tuple[list[str], list[float], float]]:
        """Names, sums and weight of what was added, exactly, as plain numbers. Waits for the device."""
        return [(list(names), sums.tolist(), self._weights[names]) for names, sums in self._sums.items()]

    def load_state_dict(self, states: Sequence[list], device: torch.device, scale: float = 1.0) -> None:
        """Go on from what had that state.

        Args:
            states: one, or those of several ranks that shared every batch, which are averaged.
            device: that values to be added will be on.
            scale: how many times as much a part of a batch weighs here.
        """
        self.reset()
        for parts in zip(*states, strict=True):
            names = parts[0][0]
            sums = torch.tensor([sums for _, sums, _ in parts], dtype=torch.float64).mean(0)
            self._sums[tuple(names)] = (sums * scale).to(device, _precise(device))
            self._weights[tuple(names)] = parts[0][2] * scale


def as_vector(values: Mapping[str, Tensor | float]) -> tuple[tuple[str, ...], Tensor]:
    """Names of scalars and their values, float64 (len(names),), on the device that any of them is on."""
    scalars = [_scalar(value) for value in values.values()]
    device = next((value.device for value in scalars if value.device.type != "cpu"), torch.device("cpu"))
    return tuple(values), torch.stack([value.to(device, _precise(device)) for value in scalars])


def _scalar(value: Tensor | float) -> Tensor:
    # A user's own may be a number of Python's or NumPy's, or a tensor of one.
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    return value.detach() if value.dim() == 0 else value.detach().reshape(())


def _precise(device: torch.device) -> torch.dtype:
    return torch.float64 if has_float64(device) else torch.float32
