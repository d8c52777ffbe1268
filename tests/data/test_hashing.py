import numpy as np

from dtp.data.hashing import counter_hash, permutation


def test_the_hash_is_that_of_splitmix64():
    # First output of the reference splitmix64 generator seeded with 0, which our hash applies to each counter.
    first = 0xE220A8397B1DCDAF
    again = int(counter_hash(0))
    mixed = (first + 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> shift)) * factor % 2**64
    assert again == mixed ^ (mixed >> 31)


def test_every_counter_changes_the_hash_and_order_matters():
    values = [
        int(counter_hash(*counters)) for counters in ((0,), (1,), (0, 0), (0, 1), (1, 0), (-1, 0), (2**64 - 2, 0))
    ]
    assert len(set(values)) == len(values)


def test_arrays_and_integers_hash_alike():
    assert [int(counter_hash(3, i)) for i in range(5)] == counter_hash(3, np.arange(5)).tolist()


def test_bits_are_balanced_and_independent_of_neighbouring_counters():
    bits = np.unpackbits(counter_hash(0, np.arange(20000)).view(np.uint8)).reshape(20000, 64).astype(float)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.02
    centred = bits - 0.5
    assert np.abs((centred[1:] * centred[:-1]).mean(0)).max() < 0.01


def test_a_permutation_holds_everything_once_and_depends_on_its_counters():
    orders = [permutation(100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
