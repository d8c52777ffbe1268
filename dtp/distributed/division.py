"""How the ranks divide the feedback phase of a batch among them: by images, by layers, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from dtp.distributed.assignment import Assignment, by_layer, hybrid
from dtp.distributed.averaging import GradientAverage, StateExchange, average_training, ranks_of, time_average
from dtp.errors import UserError
from dtp.feedback.loop import Average, FeedbackProblem, FeedbackResult
from dtp.feedback.noise import NoiseStreams


class FeedbackPhase(Protocol):
    """The feedback phase of one batch, as a rule offers it."""

    layers: Sequence[int]
    """Numbers of the feedback layers to train."""
    images: int
    """In this rank's batch."""
    optimizers: dict[int, Optimizer]
    noise_streams: NoiseStreams
    device: torch.device

    def alone(self) -> FeedbackResult:
        """Train all layers on all images, in this process alone."""
        ...

    def problems(self, layers: Sequence[int], rows: slice | None = None) -> list[FeedbackProblem]:
        """The problems of some layers, on all images or on some rows of the batch, with their part of the noise."""
        ...

    def train(self, problems: Sequence[FeedbackProblem], average: Average | None) -> FeedbackResult:
        """Train on some problems; ``average`` brings in the other ranks' part in the gradients of each iteration."""
        ...

    def costs(self, shared: bool) -> dict[int, float]:
        """Seconds that each layer takes in a batch, measured without changing anything.

        ``shared``: in the form in which several ranks share a layer, else in that of one rank alone.
        """
        ...


class Division:
    """One process, or several that each do the same: nothing is divided.

    Attributes:
        shares_images: whether each rank has images of its own.
        each_iteration: whether ranks must meet in each iteration.
    """

    shares_images = False
    each_iteration = False

    @property
    def divides(self) -> bool:
        """Whether :meth:`train` does more than a rule by itself, which then need not ask."""
        return type(self).train is not Division.train

    def begin(self) -> None:
        """A rule is about to be trained, perhaps another one than before."""

    def train(self, phase: FeedbackPhase) -> FeedbackResult:
        """Train all feedback layers of a batch; afterwards all ranks hold the same weights and optimizer states."""
        return phase.alone()

    def end(self, streams: NoiseStreams) -> None:
        """A rule has been trained, which draws noise from ``streams`` and may be trained again. Called on all ranks."""

    def noise_states(self, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What a checkpoint keeps of the noise streams of all ranks, one for each rank that has images of its own."""
        return states if self.shares_images else states[:1]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the division, the same on every rank; empty where it has learned nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, on any number of ranks."""


class ByImages(Division):
    """Each rank has its own images; the gradients of an iteration are averaged, for all layers in one collective.

    The constants of the next iterations, which depend on no feedback weights, are computed meanwhile. A batch takes
    max K_n collectives for K_n iterations of layer n. All ranks must have equally many images in a batch, as ours do.
    """

    shares_images = each_iteration = True

    def train(self, phase: FeedbackPhase) -> FeedbackResult:
        if ranks_of() == 1:
            return super().train(phase)
        problems = phase.problems(phase.layers)
        return phase.train(problems, GradientAverage({problem.layer: problem.parameters for problem in problems}))


class ByImagesOncePerBatch(Division):
    """Each rank trains on its own images alone; weights and optimizer states are averaged once per batch.

    An approximation (local SGD): the weights that each rank's later iterations start from are those of its own part of
    the batch.
    """

    shares_images = True

    def train(self, phase: FeedbackPhase) -> FeedbackResult:
        result = super().train(phase)
        average_training({n: phase.optimizers[n] for n in phase.layers}, phase.device)
        return result


class ByLayers(Division):
    """Every rank has all images and trains some of the feedback layers; then weights and states are exchanged.

    The noise is that of one process, and so are the weights, to rounding. The layers' costs are measured by rank 0 on
    the first batch, in the form that one rank trains them in, and with teams also in that of a team, which is not
    captured. They are kept in checkpoints: a run that goes on on as many ranks has the same assignment.

    Args:
        teams: whether several ranks may share costly layers, each on some rows of the batch (hybrid).
        say: is given the assignment in words, once.
        timeout: of the collectives of a team; None for torch's own.
    """

    def __init__(self, teams: bool, say: Callable[[str], None] = print, timeout: timedelta | None = None):
        self.teams, self.say, self.timeout = teams, say, timeout
        # Ranks of a team meet in each iteration.
        self.each_iteration = teams
        # By layer, of one rank alone; and of ranks that share it, with teams.
        self.costs: dict[int, float] = {}
        self.shared_costs: dict[int, float] = {}
        # Seconds that a batch's meetings cost a team, and of how many ranks that was measured.
        self.meeting: float | None = None
        self.meeting_ranks = 0
        self.begin()

    def begin(self) -> None:
        self.assignment: Assignment | None = None
        self._exchange = StateExchange()
        self._group: Any = None
        self._stepped: set[int] = set()

    def train(self, phase: FeedbackPhase) -> FeedbackResult:
        if ranks_of() == 1 or not phase.layers:
            return super().train(phase)
        assignment = self.assignment
        if assignment is None or set(assignment.owners) != set(phase.layers):
            if assignment is not None:
                self._share_noise(phase.noise_streams)
            self.begin()
            assignment = self.assignment = self._assigned(phase)
        # On every rank, so that none waits for one that fails.
        most = max(len(team.ranks) for team in assignment.teams)
        if phase.images < most:
            raise UserError(
                f"Expected at least {most} images in a batch, one for each rank of a team, found {phase.images}; use "
                "larger batches or --feedback-parallel layer."
            )
        team = assignment.team_of(dist.get_rank())
        result, share = FeedbackResult({}, {}), 1.0
        if team is not None:
            size, place = len(team.ranks), team.ranks.index(dist.get_rank())
            begin, end = (phase.images * i // size for i in (place, place + 1))
            problems = phase.problems(team.layers, None if size == 1 else slice(begin, end))
            share = (end - begin) / phase.images
            average = None
            if size > 1:
                parameters = {problem.layer: problem.parameters for problem in problems}
                average = GradientAverage(parameters, self._group, weight=share * size)
            result = phase.train(problems, average)
            self._stepped |= {n for n, steps in result.steps.items() if steps}
        optimizers = {n: phase.optimizers[n] for n in phase.layers}
        stepped = team is None or self._stepped >= set(team.layers)
        self._exchange(optimizers, assignment.owners, phase.device, stepped)
        return self._joined(phase, result, share, assignment.owners)

    def end(self, streams: NoiseStreams) -> None:
        if self.assignment is not None:
            self._share_noise(streams)

    def _share_noise(self, streams: NoiseStreams) -> None:
        """Have the stream of each layer go on, on every rank, where that which had the layer has come to."""
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, streams.state_dict())
        streams.load_state_dict(self.noise_states(states)[0])

    def _assigned(self, phase: FeedbackPhase) -> Assignment:
        if set(self.costs) != set(phase.layers):
            self.costs = _of_first_rank(lambda: phase.costs(False))
        if self.teams and set(self.shared_costs) != set(phase.layers):
            self.shared_costs = _of_first_rank(lambda: phase.costs(True))
        if self.teams and (self.meeting is None or self.meeting_ranks != dist.get_world_size()):
            problems = phase.problems(phase.layers)
            seconds = time_average({problem.layer: problem.parameters for problem in problems})
            self.meeting = _of_first_rank(lambda: seconds * max(problem.iterations for problem in problems))
            self.meeting_ranks = dist.get_world_size()
        ranks = dist.get_world_size()
        # A team must leave each of its ranks an image.
        if self.teams:
            plan = hybrid(self.costs, min(ranks, phase.images), self.meeting or 0.0, self.shared_costs)
        else:
            plan = by_layer(self.costs, ranks)
        assignment = replace(plan, ranks=ranks)
        for team in assignment.teams:
            if len(team.ranks) > 1:
                group = dist.new_group(team.ranks, timeout=self.timeout)
                if dist.get_rank() in team.ranks:
                    self._group = group
        if dist.get_rank() == 0:
            self.say(f"  feedback of {assignment}")
        return assignment

    def _joined(
        self, phase: FeedbackPhase, result: FeedbackResult, share: float, owners: dict[int, int]
    ) -> FeedbackResult:
        """Losses and steps of all layers on every rank."""
        values = torch.zeros(2, len(phase.layers), device=phase.device, dtype=torch.float64)
        rank = dist.get_rank()
        for i, n in enumerate(phase.layers):
            if n in result.losses:
                values[0, i] = result.losses[n] * share
            if owners[n] == rank:
                values[1, i] = result.steps.get(n, 0)
        dist.all_reduce(values)
        losses = {n: values[0, i] for i, n in enumerate(phase.layers)}
        return FeedbackResult(losses, {n: values[1, i] for i, n in enumerate(phase.layers)})

    def noise_states(self, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
        merged = dict(states[0])
        if self.assignment is not None:
            owners = self.assignment.owners.items()
            own = {n: states[rank]["states"][n] for n, rank in owners if n in states[rank]["states"]}
            merged["states"] = {**merged["states"], **own}
            merged["common"] = sorted({n for state in states for n in state["common"]})
        return [merged]

    def state_dict(self) -> dict[str, Any]:
        return {
            "costs": self.costs,
            "shared_costs": self.shared_costs,
            "meeting": self.meeting,
            "meeting_ranks": self.meeting_ranks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.costs, self.shared_costs = dict(state.get("costs", {})), dict(state.get("shared_costs", {}))
        self.meeting = state.get("meeting")
        self.meeting_ranks = state.get("meeting_ranks", 0)


def _of_first_rank(function: Callable[[], Any]) -> Any:
    """What ``function`` returns on rank 0, on every rank; where it fails there, all fail."""
    found: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            found[0] = function()
        except Exception as error:
            failure, found[1] = error, f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(found)
    if failure is not None:
        raise failure
    if found[1] is not None:
        raise RuntimeError(f"rank 0 could not measure the feedback layers: {found[1]}")
    return found[0]
