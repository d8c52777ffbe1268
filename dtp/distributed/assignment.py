"""Which ranks train which feedback layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Team:
    """Ranks that train some feedback layers together, each on its part of the batch."""

    ranks: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Assignment:
    """Feedback layers on teams of ranks.

    Attributes:
        costs: seconds (or any other unit) that each layer takes one rank in a batch.
        ranks: how many there are; some may have nothing to do.
        teams: disjoint in ranks and in layers; all layers are in one.
        meeting: what a team of several ranks spends in a batch on averaging gradients, in the same unit.
        shared: what the layers take in the form in which several ranks share them; None for ``costs``.
    """

    costs: dict[int, float]
    ranks: int
    teams: tuple[Team, ...]
    meeting: float = 0.0
    shared: dict[int, float] | None = None

    @property
    def owners(self) -> dict[int, int]:
        """The first rank of each layer's team."""
        return {n: team.ranks[0] for team in self.teams for n in team.layers}

    def team_of(self, rank: int) -> Team | None:
        """The team that a rank is in; None for one without work."""
        return next((team for team in self.teams if rank in team.ranks), None)

    @property
    def time(self) -> float:
        """Until the last team is done, in the unit of the costs."""
        teams = ((team.layers, len(team.ranks)) for team in self.teams)
        return max((_time(self.costs, *team, self.meeting, self.shared) for team in teams), default=0.0)

    @property
    def balance(self) -> float:
        """Part of the ranks' time that is work: 1 where all finish together."""
        return sum(self.costs.values()) / (self.ranks * self.time) if self.time else 1.0

    def __str__(self) -> str:
        whole = sum(self.costs.values()) or 1.0
        parts = []
        for team in self.teams:
            ranks = f"rank{'s' if len(team.ranks) > 1 else ''} {_spans(team.ranks)}"
            layers = f"layer{'s' if len(team.layers) > 1 else ''} {', '.join(map(str, team.layers))}"
            parts.append(f"{layers} on {ranks} ({sum(self.costs[n] for n in team.layers) / whole:.0%} of the work)")
        idle = self.ranks - sum(len(team.ranks) for team in self.teams)
        if idle:
            parts.append(f"{idle} rank{'s' if idle > 1 else ''} without a layer")
        ahead = whole / self.time if self.time else 1.0
        speed = f"{ahead:.2f} times faster" if ahead >= 1 else f"{1 / ahead:.2f} times slower"
        return f"{'; '.join(parts)}: balance {self.balance:.0%}, {speed} than one rank"


def by_layer(costs: dict[int, float], ranks: int) -> Assignment:
    """Whole layers on single ranks, the longest time as short as a greedy search with exchanges makes it."""
    bins = _bins(costs, [1] * min(ranks, len(costs))) if costs else []
    return _assignment(costs, ranks, [(layers, 1) for layers in bins if layers], 0.0)


def hybrid(
    costs: dict[int, float], ranks: int, meeting: float = 0.0, shared: dict[int, float] | None = None
) -> Assignment:
    """Layers on teams of one or more ranks: those that are done first, by the costs and by that of meeting.

    ``shared`` are the costs of layers on teams of several, where those train them in another form.
    """
    plans = []
    for count in range(1, min(ranks, len(costs)) + 1):
        # Not always all ranks: one more in a team brings less than its meetings cost where these are dear.
        for used in range(count, ranks + 1):
            # Sizes follow loads and loads follow sizes: begin with single ranks and widen the slowest team.
            for loads in (costs,) if shared is None else (costs, shared):
                bins = _bins(loads, [1] * count)
                for _ in range(3):
                    sizes = _sizes([sum(loads[n] for n in layers) for layers in bins], used)
                    plans.append(list(zip(bins, sizes, strict=True)))
                    bins = _bins(loads, sizes)
                    plans.append(list(zip(bins, sizes, strict=True)))
    plans = [[(layers, size) for layers, size in plan if layers] for plan in plans]
    if not plans:
        return Assignment(costs, ranks, (), meeting, shared)
    best = min(plans, key=lambda plan: (max(_time(costs, *team, meeting, shared) for team in plan), -len(plan)))
    return _assignment(costs, ranks, best, meeting, shared)


def _time(
    costs: dict[int, float],
    layers: Iterable[int],
    size: int,
    meeting: float,
    shared: dict[int, float] | None,
) -> float:
    if size == 1:
        return sum(costs[n] for n in layers)
    return sum((shared or costs)[n] for n in layers) / size + meeting


def _bins(costs: dict[int, float], sizes: list[int]) -> list[list[int]]:
    """Layers in bins that work ``sizes`` times as fast: longest first to where it ends first, then moves and swaps."""
    bins: list[list[int]] = [[] for _ in sizes]
    loads = [0.0] * len(sizes)
    for n in sorted(costs, key=lambda n: (-costs[n], n)):
        place = min(range(len(bins)), key=lambda i: ((loads[i] + costs[n]) / sizes[i], i))
        bins[place].append(n)
        loads[place] += costs[n]
    while (better := _improvement(bins, loads, sizes, costs)) is not None:
        bins, loads = better
    return [sorted(layers) for layers in bins]


def _improvement(bins: list[list[int]], loads: list[float], sizes: list[int], costs: dict[int, float]):
    """The best move of a layer out of the slowest bin, or swap with another's; None where none helps."""
    times = [load / size for load, size in zip(loads, sizes, strict=True)]
    slow = max(range(len(bins)), key=lambda i: times[i])
    best, found = times[slow] * (1 - 1e-9), None
    for other in range(len(bins)):
        if other == slow:
            continue
        for given, taken in _exchanges(bins[slow], bins[other]):
            change = sum(costs[n] for n in given) - sum(costs[n] for n in taken)
            slower = max((loads[slow] - change) / sizes[slow], (loads[other] + change) / sizes[other])
            if slower < best:
                best, found = slower, (other, given, taken, change)
    if found is None:
        return None
    other, given, taken, change = found
    bins, loads = [list(layers) for layers in bins], list(loads)
    bins[slow] = [n for n in bins[slow] if n not in given] + taken
    bins[other] = [n for n in bins[other] if n not in taken] + given
    loads[slow] -= change
    loads[other] += change
    return bins, loads


def _exchanges(mine: list[int], others: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    for n in mine:
        yield [n], []
        for k in others:
            yield [n], [k]


def _sizes(loads: list[float], ranks: int) -> list[int]:
    """Ranks of each team: one, and each further one to the team that is slowest without it."""
    sizes = [1] * len(loads)
    for _ in range(ranks - len(loads)):
        slow = max(range(len(loads)), key=lambda i: (loads[i] / sizes[i], -i))
        sizes[slow] += 1
    return sizes


def _assignment(
    costs: dict[int, float],
    ranks: int,
    plan: list[tuple[list[int], int]],
    meeting: float,
    shared: dict[int, float] | None = None,
) -> Assignment:
    teams, first = [], 0
    for layers, size in sorted(plan):
        teams.append(Team(tuple(range(first, first + size)), tuple(layers)))
        first += size
    return Assignment(costs, ranks, tuple(teams), meeting, shared)


def _spans(ranks: tuple[int, ...]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
