"""Noise streams: one per layer and rank, reproducible, continued from a checkpoint bit for bit."""

import io

import pytest
import torch

from dtp.feedback import NoiseStreams

LIKE = torch.empty(0)
COUNT = 40_000


def draw(streams: NoiseStreams, n: int, count: int = 5) -> torch.Tensor:
    return streams.normal(n, (count,), 1.0, LIKE)


def test_same_seed_gives_the_same_noise():
    one, other = NoiseStreams(3), NoiseStreams(3)
    for n in (2, 3, 2):
        assert torch.equal(draw(one, n), draw(other, n))


def test_noise_has_the_shape_dtype_and_scale_asked_for():
    noise = NoiseStreams(0).normal(2, (200, 3, 50), 0.3, torch.empty(0, dtype=torch.float64))
    assert noise.shape == (200, 3, 50) and noise.dtype == torch.float64
    # The standard error of a standard deviation is sigma / sqrt(2 n), that of a mean sigma / sqrt(n).
    assert abs(noise.std() / 0.3 - 1) < 5 / (2 * noise.numel()) ** 0.5
    assert abs(noise.mean() / 0.3) < 5 / noise.numel() ** 0.5


def test_streams_of_layers_ranks_seeds_and_restarts_are_independent():
    """Correlations of independent noise have standard deviation 1 / sqrt(n)."""
    restarted = NoiseStreams(0)
    restarted.restart(1)
    origins = [NoiseStreams(0), NoiseStreams(1), NoiseStreams(0, rank=1), NoiseStreams(1, rank=1), restarted]
    rows = torch.stack([draw(streams, n, COUNT) for streams in origins for n in (2, 3)])
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlations.abs().max() < 5 / COUNT**0.5


def test_successive_draws_are_independent():
    streams = NoiseStreams(0)
    rows = torch.stack([draw(streams, 2, COUNT) for _ in range(3)])
    assert (torch.corrcoef(rows) - torch.eye(3)).abs().max() < 5 / COUNT**0.5


def test_a_layers_noise_does_not_depend_on_the_other_layers():
    alone, among = NoiseStreams(0), NoiseStreams(0)
    expected = [draw(alone, 3), draw(alone, 3)]
    draw(among, 2)
    first = draw(among, 3)
    draw(among, 2), draw(among, 4)
    assert torch.equal(first, expected[0]) and torch.equal(draw(among, 3), expected[1])


def test_noise_and_torchs_global_generator_do_not_disturb_each_other():
    undisturbed, streams = NoiseStreams(0), NoiseStreams(0)
    expected = [draw(undisturbed, 2), draw(undisturbed, 2)]
    torch.manual_seed(1)
    first = draw(streams, 2)
    torch.randn(7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first, expected[0]) and torch.equal(draw(streams, 2), expected[1])
    assert torch.equal(torch.get_rng_state(), state)


def saved(streams: NoiseStreams) -> dict:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(streams.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("drawn_since", [(), (2, 3), (2, 7, 7)], ids=str)
def test_restored_streams_continue_exactly(drawn_since):
    """Whatever the streams that the state is loaded into had drawn, of these layers or of others."""
    original, resumed = NoiseStreams(0), NoiseStreams(9)
    draw(original, 2), draw(original, 2, 3), draw(original, 3)
    state = saved(original)
    for n in drawn_since:
        draw(resumed, n)
    resumed.load_state_dict(state)
    for n in (3, 2, 2, 3, 4, 7):  # 4 and 7 begin in both
        assert torch.equal(draw(resumed, n), draw(original, n)), n


def test_loading_goes_back_in_the_same_streams():
    streams = NoiseStreams(0)
    draw(streams, 2)
    state = streams.state_dict()
    expected = [draw(streams, n) for n in (2, 3, 2)]
    streams.load_state_dict(state)
    assert all(torch.equal(draw(streams, n), noise) for n, noise in zip((2, 3, 2), expected, strict=True))


def test_saved_state_does_not_move_with_later_draws():
    streams = NoiseStreams(0)
    draw(streams, 2)
    state = streams.state_dict()
    before = state["states"][2].clone()
    draw(streams, 2)
    assert torch.equal(state["states"][2], before)


def test_a_state_passes_through_streams_that_draw_nothing():
    """Resumed and stopped again before a layer's first draw, its place in the stream is not lost."""
    original, between, last = NoiseStreams(0), NoiseStreams(0), NoiseStreams(0)
    draw(original, 2), draw(original, 3)
    between.load_state_dict(saved(original))
    draw(between, 3), draw(original, 3)
    last.load_state_dict(saved(between))
    for n in (2, 3):
        assert torch.equal(draw(last, n), draw(original, n))


def test_restarted_streams_differ_from_every_earlier_start():
    streams = NoiseStreams(0)
    starts = []
    for epoch in (0, 1, 100):
        streams.restart(epoch)
        starts.append(draw(streams, 2))
    assert torch.equal(starts[0], draw(NoiseStreams(0), 2))
    assert not any(torch.equal(starts[i], starts[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_restarted_streams_continue_exactly_after_a_checkpoint():
    """Also for a layer that had not drawn yet: it must not replay the noise of the first start."""
    original, resumed = NoiseStreams(0, rank=1), NoiseStreams(0, rank=1)
    original.restart(100)
    draw(original, 2)
    resumed.load_state_dict(saved(original))
    for n in (2, 3):
        assert torch.equal(draw(resumed, n), draw(original, n)), n


# --- channels last ----------------------------------------------------------------------------------------------------

SHAPE = (6, 3, 4, 5)


def like(memory_format: torch.memory_format, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.empty(shape).contiguous(memory_format=memory_format)


def test_noise_has_the_layout_of_the_maps_it_is_for():
    last = NoiseStreams(0).normal(2, SHAPE, 1.0, like(torch.channels_last))
    assert last.shape == SHAPE and last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert NoiseStreams(0).normal(2, SHAPE, 1.0, like(torch.contiguous_format)).is_contiguous()


def test_noise_has_the_layout_of_its_maps_for_several_samples_of_each():
    shape = (3 * SHAPE[0], *SHAPE[1:])
    last = NoiseStreams(0).normal(2, shape, 1.0, like(torch.channels_last))
    assert last.shape == shape and last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()


def test_channels_last_noise_is_the_same_numbers_in_the_order_of_the_memory():
    """So its distribution is the same, and every number is used once."""
    last = NoiseStreams(0).normal(2, SHAPE, 0.3, like(torch.channels_last))
    contiguous = NoiseStreams(0).normal(2, SHAPE, 0.3, like(torch.contiguous_format))
    assert torch.equal(last.permute(0, 2, 3, 1).flatten(), contiguous.flatten())
    assert not torch.equal(last, contiguous)


def test_channels_last_noise_has_the_scale_and_dtype_asked_for():
    maps = like(torch.channels_last, (100, 5, 8, 10)).double()
    noise = NoiseStreams(0).normal(2, maps.shape, 0.3, maps)
    assert noise.dtype == torch.float64 and not noise.is_contiguous()
    assert abs(noise.std() / 0.3 - 1) < 5 / (2 * noise.numel()) ** 0.5
    assert abs(noise.mean() / 0.3) < 5 / noise.numel() ** 0.5


def test_streams_advance_equally_in_either_layout():
    one, other = NoiseStreams(0), NoiseStreams(0)
    for _ in range(2):
        one.normal(2, SHAPE, 1.0, like(torch.channels_last))
        other.normal(2, SHAPE, 1.0, like(torch.contiguous_format))
    assert torch.equal(one.state_dict()["states"][2], other.state_dict()["states"][2])
    assert torch.equal(draw(one, 2), draw(other, 2))


@pytest.mark.parametrize("shape", [(6, 1, 4, 5), (6, 3, 1, 1)])
def test_maps_whose_layout_is_ambiguous_get_the_same_noise(shape):
    """One channel or one position is contiguous and channels last at once."""
    noise = [
        NoiseStreams(0).normal(2, shape, 1.0, like(f, shape)) for f in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*noise)


def test_common_noise_is_the_same_on_every_rank_and_after_a_restart_on_more():
    def common(streams):
        return streams.normal(1, (5,), 1.0, LIKE, common=True)

    first, second = NoiseStreams(0), NoiseStreams(0, rank=1)
    assert torch.equal(common(first), common(second))
    assert not torch.equal(draw(first, 2), draw(second, 2))
    added = NoiseStreams(0, rank=2)
    added.restart(100, first.state_dict())
    assert torch.equal(common(added), common(first))
    assert not torch.equal(draw(added, 2), draw(first, 2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_noise_of_several_times_is_what_would_be_drawn_one_after_the_other(memory_format):
    """Bit for bit, in the same memory format, and the stream goes on from the same place."""
    one, other = NoiseStreams(3), NoiseStreams(3)
    likes = torch.empty(2, 3, 4, 5).to(memory_format=memory_format), torch.empty(2, 7)
    shapes = [(4, *like.shape[1:]) for like in likes]
    drawn = [[one.normal(2, shape, 0.3, like) for shape, like in zip(shapes, likes, strict=True)] for _ in range(3)]
    found = other.normals(2, shapes, 0.3, likes, 3)
    for joined, parts in zip(found, zip(*drawn, strict=True), strict=True):
        assert torch.equal(joined, torch.cat(parts)) and joined.stride() == torch.cat(parts).stride()
    assert torch.equal(draw(one, 2), draw(other, 2))


def test_streams_go_on_as_if_what_was_drawn_in_between_had_not_been():
    """Of one that has begun, one that a checkpoint begins, and one that begins in between; with the same generators."""
    undisturbed, streams = NoiseStreams(0), NoiseStreams(0)
    for each in (undisturbed, streams):
        draw(each, 2)
        draw(each, 3)
    saved = undisturbed.state_dict()
    for each in (undisturbed, streams):
        each.load_state_dict(saved)
        draw(each, 2)
    generators = streams.generators()
    with streams.unchanged():
        inside = {n: draw(streams, n) for n in (2, 3, 4)}
    assert streams.generators() == generators
    for n, expected in inside.items():
        # Within, it is what would have come.
        assert torch.equal(draw(streams, n), expected) and torch.equal(draw(undisturbed, n), expected)
    with pytest.raises(ValueError), streams.unchanged():
        draw(streams, 2)
        raise ValueError
    assert torch.equal(draw(streams, 2), draw(undisturbed, 2))
