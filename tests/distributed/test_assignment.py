"""Which ranks train which layers: complete, disjoint, and nearly as even as any assignment could be."""

from itertools import product

import pytest

from dtp.distributed.assignment import Assignment, Team, by_layer, hybrid

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


@pytest.mark.parametrize(
    ("costs", "ranks"),
    [
        ([6, 8, 2, 1, 8, 5], 2),
        ([6, 9, 7, 4, 6, 1, 5, 3], 3),
        ([3, 3, 4, 7, 8, 6, 8, 9], 3),
        ([6, 6, 1, 9, 6, 8, 8, 9], 3),
    ],
)
def test_layers_that_no_simpler_search_divides_well_are_as_even_as_any_assignment(costs, ranks):
    """Not one in another order, without exchanges, or without more than one of them."""
    layers = dict(enumerate(costs, 2))
    assert by_layer(layers, ranks).time == _best_makespan(layers, ranks)


def test_a_layer_that_is_dear_to_share_has_a_rank_and_a_team_the_others():
    costs = {2: 0.46, 3: 0.55, 4: 0.16}
    # Alone 3 would take 0.55, and a team with 2 more than 0.63.
    found = hybrid(costs, 3, 0.03, costs | {2: 1.1})
    assert found.time == 0.46 and sorted(team.layers for team in found.teams) == [(2,), (3, 4)]


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
    costs = {2: 3.0, 3: 1.0}
    assert str(by_layer(costs, 2)) == (
        "layer 2 on rank 0 (75% of the work); layer 3 on rank 1 (25% of the work): balance 67%, "
        "1.33 times faster than one rank"
    )
    # 4 / 3 + 4 on four ranks.
    assert str(Assignment(costs, 4, (Team((0, 1, 2), (2, 3)),), meeting=4.0)) == (
        "layers 2, 3 on ranks 0-2 (100% of the work); 1 rank without a layer: balance 19%, "
        "1.33 times slower than one rank"
    )


def test_layers_that_take_no_time_are_told_too():
    assert "on rank 0 (0% of the work)" in str(by_layer({2: 0.0, 3: 0.0}, 2))
