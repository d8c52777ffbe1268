"""Operations that draw random numbers."""

import pytest
import torch

from dtp.models.modules import InputNoise, RandomOperation, Sample


def test_units_are_one_as_often_as_their_probability_says():
    p = torch.tensor([0.0, 0.02, 0.3, 0.5, 0.97, 1.0])
    h = Sample()(p.expand(20_000, -1))
    assert set(h.unique().tolist()) == {0.0, 1.0}
    assert h[:, 0].sum() == 0 and h[:, -1].sum() == 20_000
    deviation = (p * (1 - p) / 20_000).sqrt()
    assert ((h.mean(0) - p).abs() <= 4.5 * deviation).all()


def test_values_that_are_no_probabilities_count_as_the_nearest_one():
    h = Sample()(torch.tensor([-0.3, 1.4]).expand(1000, -1))
    assert not h[:, 0].any() and h[:, 1].all()


def test_units_of_one_pass_are_independent_of_each_other_and_of_the_next_pass():
    sample, p = Sample(), torch.full((20_000, 3), 0.5)
    h = torch.cat([sample(p), sample(p)], 1)
    correlation = torch.corrcoef(h.t()) - torch.eye(6)
    assert correlation.abs().max() < 4.5 / 20_000**0.5


def test_sixteen_bits_do_not_round_the_probabilities():
    """bfloat16 uniform numbers would be multiples of 1/256: units of 0.001 would come four times as often."""
    p = torch.full((400_000,), 0.001, dtype=torch.bfloat16)
    h = Sample()(p)
    assert h.dtype == torch.bfloat16
    assert float(h.float().mean()) == pytest.approx(float(p[0]), abs=4.5 * (0.001 / 400_000) ** 0.5)


def test_gradients_pass_a_sample_as_if_it_were_the_probability():
    p = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    upward = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(Sample()(p), p, upward)[0], upward)


@pytest.mark.parametrize("operation", [Sample(), InputNoise(0.3)])
def test_a_pass_with_given_numbers_is_the_pass_that_drew_them(operation):
    x = torch.rand(6, 5)
    torch.manual_seed(3)
    y = operation(x)
    torch.manual_seed(3)
    numbers = operation.draw(x)
    state = torch.get_rng_state()
    assert torch.equal(operation.with_numbers(x, numbers), y)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("operation", [Sample(), InputNoise(0.3)])
def test_both_precisions_draw_alike(operation):
    x = torch.rand(6, 5)
    numbers = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(3)
        numbers.append(operation.draw(x.to(dtype)))
        assert operation.with_numbers(x.to(dtype), numbers[-1]).dtype == dtype
    assert torch.equal(*numbers)


def test_input_noise_has_its_deviation_and_is_there_in_training_only():
    noise, x = InputNoise(0.3), torch.rand(50_000)
    difference = noise(x) - x
    assert float(difference.std()) == pytest.approx(0.3, rel=0.02) and abs(float(difference.mean())) < 0.01
    for silent in (InputNoise(0.3).eval(), InputNoise(0.0)):
        state = torch.get_rng_state()
        assert not silent.draws and torch.equal(silent(x), x)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_users_own_random_operation_says_how_it_draws():
    with pytest.raises(NotImplementedError):
        RandomOperation()(torch.zeros(2, 2))
