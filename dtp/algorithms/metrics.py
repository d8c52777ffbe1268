"""Running means of training metrics, kept on the device and read only when somebody looks."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningMeans:
    """Means of scalar tensors, weighted; adding never waits for the device.

    Numbers that the host knows anyway, as counts, may lie there.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        for name, value in values.items():
            value = value.detach().to(torch.float64 if value.device.type != "mps" else torch.float32) * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def compute(self, over_ranks: bool = False) -> dict[str, float]:
        """The means. One transfer from the device for all of them.

        Args:
            over_ranks: whether to weigh in what other ranks have added under the same names; all must then call this.
        """
        if not self._sums:
            return {}
        sums = self._stacked()
        if over_ranks:
            # Ranks have equal shares of every batch, so their means weigh alike.
            torch.distributed.all_reduce(sums)
            sums /= torch.distributed.get_world_size()
        return {name: value / self._weights[name] for name, value in zip(self._sums, sums.tolist(), strict=True)}

    def _stacked(self) -> Tensor:
        """All sums, on the device that any of them is on: ranks can average nothing else there."""
        sums = list(self._sums.values())
        device = next((value.device for value in sums if value.device.type != "cpu"), sums[0].device)
        return torch.stack([value.to(device) for value in sums])

    def reset(self) -> None:
        self._sums.clear()
        self._weights.clear()
