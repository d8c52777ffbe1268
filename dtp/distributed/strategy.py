"""Several devices for any number of optimizers and steps per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.optim import Optimizer

from dtp.compat import start_from_rank_zero
from dtp.distributed.averaging import average_gradients
from dtp.distributed.division import ByImages, ByImagesOncePerBatch, ByLayers, Division


class FeedbackDDPStrategy(DDPStrategy):
    """Averages gradients over ranks where an optimizer steps, for the parameters of that optimizer, and nowhere else.

    Lightning's ``ddp`` reduces gradients in backward hooks of a wrapped module. Rules that call ``torch.autograd.grad``
    pass by those hooks, so their ranks drift apart silently, and rules with several backward passes per batch need a
    search for unused parameters. Here nothing is wrapped: every rule is data-parallel as it is. How the many steps of
    the feedback weights are divided is a choice of its own, which the rules with such a phase ask for.

    Args:
        feedback_parallel: ``data``: each rank has its share of the images; ``layer``: every rank has all images and
            some of the feedback layers; ``hybrid``: the same, but costly layers have several ranks.
        feedback_sync: with ``data``, whether ranks average in each ``step`` of the feedback weights or once per
            ``batch``, an approximation.
        kwargs: of Lightning's DDPStrategy.
    """

    strategy_name = "feedback-ddp"

    def __init__(
        self,
        feedback_parallel: Literal["data", "layer", "hybrid"] = "data",
        feedback_sync: Literal["step", "batch"] = "step",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.feedback_parallel = feedback_parallel
        self.division: Division
        if feedback_parallel == "data":
            self.division = ByImages() if feedback_sync == "step" else ByImagesOncePerBatch()
        else:
            self.division = ByLayers(teams=feedback_parallel == "hybrid", timeout=kwargs.get("timeout"))
        self._averages = True

    @property
    def training_share(self) -> tuple[int, int]:
        """This rank's share of the training images: (share, number of shares)."""
        return (self.global_rank, self.world_size) if self.division.shares_images else (0, 1)

    def configure_ddp(self) -> None:
        """Start all ranks from the parameters and buffers of rank 0; the module itself stays unwrapped."""
        assert self.lightning_module is not None
        start_from_rank_zero(self.lightning_module)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """One step on the averaged gradients. Hooks that see gradients before the step (clipping) see the averages."""

        def closure_then_average() -> Any:
            result = closure()
            if self._averages:
                _average([optimizer])
            return result

        return super().optimizer_step(optimizer, closure_then_average, model, **kwargs)

    @contextmanager
    def averaged(self, optimizers: Sequence[Optimizer]) -> Iterator[None]:
        """Within, ``optimizers`` step on the averages of all of them, which hooks see before the first one's step."""
        if self._averages:
            _average(optimizers)
        with self.without_averaging():
            yield

    @contextmanager
    def without_averaging(self) -> Iterator[None]:
        """Within, steps take the gradients as they are: averaged already, or another rank's business."""
        before, self._averages = self._averages, False
        try:
            yield
        finally:
            self._averages = before


def _average(optimizers: Sequence[Optimizer]) -> None:
    average_gradients([p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]])


StrategyRegistry.register(
    FeedbackDDPStrategy.strategy_name,
    FeedbackDDPStrategy,
    description="Averages gradients where an optimizer steps; divides feedback training.",
)
