"""Which ranks train which layers: complete, disjoint, and nearly as even as any assignment could be."""

from dataclasses import replace
from itertools import product

import pytest

from dtp.distributed.assignment import by_layer, hybrid

VGG = {2: 0.21, 3: 0.35, 4: 0.26, 5: 0.16, 6: 0.02}
EVEN = {n: 1.0 for n in range(2, 8)}
STEEP = {n: 2.0**n for n in range(2, 9)}
RANDOM = {n: 1 + (n * 7919 % 13) / 3 for n in range(2, 11)}
COSTS = {"vgg": VGG, "even": EVEN, "steep": STEEP, "random": RANDOM}


def _best_makespan(costs, ranks):
    """By trying every assignment of whole layers."""
    layers, best = list(costs), float("inf")
    for places in product(range(ranks), repeat=len(layers)):
        loads = [0.0] * ranks
        for n, place in zip(layers, places, strict=True):
            loads[place] += costs[n]
        best = min(best, max(loads))
    return best


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("divide", [by_layer, hybrid])
def test_every_layer_is_on_one_team_and_every_rank_on_at_most_one(divide, costs, ranks):
    assignment = divide(costs, ranks)
    assert sorted(n for team in assignment.teams for n in team.layers) == sorted(costs)
    found = [rank for team in assignment.teams for rank in team.ranks]
    assert len(set(found)) == len(found) <= ranks and set(found) <= set(range(ranks))
    assert set(assignment.owners) == set(costs)
    for rank in range(ranks):
        team = assignment.team_of(rank)
        assert (team is None) == (rank not in found) and (team is None or rank in team.ranks)
    assert 0 < assignment.balance <= 1 + 1e-12


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("costs", [VGG, EVEN, STEEP, {n: RANDOM[n] for n in list(RANDOM)[:7]}])
def test_whole_layers_are_as_even_as_any_assignment_to_a_twentieth(costs, ranks):
    assert by_layer(costs, ranks).time <= _best_makespan(costs, ranks) * 1.05
    assert all(len(team.ranks) == 1 for team in by_layer(costs, ranks).teams)


def test_more_ranks_than_layers_leave_some_without():
    assignment = by_layer(VGG, 8)
    assert len(assignment.teams) == 5 and assignment.team_of(7) is None
    assert assignment.time == max(VGG.values())
    assert "3 ranks without a layer" in str(assignment)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 64])
def test_teams_give_costly_layers_more_ranks_and_leave_none_without(ranks):
    assignment = hybrid(VGG, ranks)
    assert sum(len(team.ranks) for team in assignment.teams) == ranks
    assert assignment.time <= by_layer(VGG, ranks).time
    assert assignment.balance > 0.85


def test_where_meeting_costs_more_than_it_brings_layers_are_not_shared():
    assert all(len(team.ranks) == 1 for team in hybrid(VGG, 2, meeting=0.2).teams)
    (team,) = hybrid(VGG, 2, meeting=0.001).teams
    assert team.ranks == (0, 1) and team.layers == (2, 3, 4, 5, 6)


def test_a_layer_that_is_quicker_on_one_rank_is_shared_only_where_that_is_quicker_still():
    alone = {2: 1.0, 3: 1.0}
    # Two ranks share a layer in a form that takes four times as long: each has one alone.
    apart = hybrid(alone, 2, 0.0, {2: 4.0, 3: 4.0})
    assert all(len(team.ranks) == 1 for team in apart.teams) and apart.time == 1.0
    # Twice as long on eight ranks: four of them halve what one takes.
    (first, second) = hybrid(alone, 8, 0.0, {2: 2.0, 3: 2.0}).teams
    assert len(first.ranks) == len(second.ranks) == 4
    assert hybrid(alone, 8, 0.0, {2: 2.0, 3: 2.0}).time == pytest.approx(0.5)


@pytest.mark.parametrize("meeting", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
def test_teams_are_never_slower_than_single_ranks(costs, meeting):
    for ranks in range(2, 17):
        assert hybrid(costs, ranks, meeting).time <= by_layer(costs, ranks).time + 1e-12


def test_no_layers_need_no_ranks():
    assert by_layer({}, 2).teams == hybrid({}, 2).teams == ()


def test_the_assignment_is_told_in_words():
    text = str(by_layer(VGG, 2))
    assert text.count("on rank") == 2 and "% of the work" in text and "times faster than one rank" in text
    assert "balance 9" in text
    assert "times slower than one rank" in str(replace(hybrid(VGG, 2, meeting=0.0), meeting=3.0))
