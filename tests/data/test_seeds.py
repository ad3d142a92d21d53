from __future__ import annotations

import torch

from disk_kd.data.seeds import integers, sample_seeds, uniform

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The finaliser in Python's own integers, written from the paper."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def python_seed(sample: int, view: int, seed: int) -> int:
    gamma = 0x9E3779B97F4A7C15
    state = splitmix64((seed + gamma) & MASK)
    state = splitmix64((state + (view + 1) * gamma) & MASK)
    state = splitmix64((state + (sample + 1) * gamma) & MASK)
    return state - (1 << 64) if state >> 63 else state


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_seeds_equal_the_hash_in_python_integers():
    for view, seed in ((0, 0), (7, 3), (-1, 12345678901234567890), (199, -5)):
        seeds = sample_seeds(torch.tensor([0, 1, 49_999, 2**40]), view, seed)
        assert seeds.tolist() == [python_seed(i, view, seed) for i in (0, 1, 49_999, 2**40)]


def test_uniform_of_seed_zero_is_the_published_stream_of_splitmix64():
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    for slot, value in enumerate(published):
        assert uniform(torch.tensor([0]), slot).item() == (value >> 40) / 2**24


def test_frozen_values():
    seeds = sample_seeds(torch.arange(3), view=1, seed=2)
    assert seeds.tolist() == [-8255215380093419786, 1701975914881669494, 7787568880677798796]
    assert integers(seeds, 4, 100).tolist() == [81, 36, 16]


def test_a_seed_does_not_depend_on_the_batch_it_is_in():
    ids = torch.arange(1000)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = sample_seeds(ids, 3, 1)
    assert torch.equal(sample_seeds(ids[order], 3, 1), whole[order])
    assert torch.equal(uniform(whole[order[:7]], 2), uniform(whole, 2)[order[:7]])


def test_uniform_is_uniform():
    n, cells = 200_000, 100
    numbers = uniform(sample_seeds(torch.arange(n), 0, 0), 0).double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    counts = (numbers * cells).long().bincount(minlength=cells).double()
    chi_squared = float(((counts - n / cells) ** 2 / (n / cells)).sum())
    assert 40 < chi_squared < 170  # 99 degrees of freedom


def test_slots_views_seeds_and_neighbours_are_uncorrelated():
    ids = torch.arange(50_000)
    base_seeds = sample_seeds(ids, 0, 0)
    base = uniform(base_seeds, 0)
    others = {
        "slot": uniform(base_seeds, 1),
        "view": uniform(sample_seeds(ids, 1, 0), 0),
        "seed": uniform(sample_seeds(ids, 0, 1), 0),
        "neighbour": base.roll(1),
        "view and slot": uniform(sample_seeds(ids, 1, 0), 1),
    }
    for name, other in others.items():
        assert abs(correlation(base, other)) < 4 / len(ids) ** 0.5, name
    assert len(torch.cat([base_seeds, sample_seeds(ids, 1, 0), sample_seeds(ids, 0, 1)]).unique()) == 150_000


def test_integers_stay_below_high():
    seeds = sample_seeds(torch.arange(20_000), 0, 0)
    for high in (1, 2, 7, 25, 2**24):
        numbers = integers(seeds, 0, high)
        assert numbers.dtype == torch.int64
        assert 0 <= int(numbers.min()) <= int(numbers.max()) < high
    assert integers(seeds, 0, 7).unique().tolist() == list(range(7))
