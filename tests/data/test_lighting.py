from __future__ import annotations

import pytest
import torch

from disk_kd.data.lighting import lighting
from disk_kd.data.seeds import sample_seeds

EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64)
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
)


def seeds_of(count: int, view: int = 0) -> torch.Tensor:
    return sample_seeds(torch.arange(count), view, 0)


def test_the_coordinates_are_three_independent_normal_numbers():
    count, sigma = 200_000, 0.1
    alpha = lighting(seeds_of(count), sigma, 10) @ torch.linalg.inv(EIGENVECTORS * EIGENVALUES).T / sigma
    assert alpha.mean(0).abs().max() < 4 / count**0.5
    assert (torch.cov(alpha.T) - torch.eye(3)).abs().max() < 4 * (2 / count) ** 0.5
    normal = torch.distributions.Normal(0.0, 1.0)
    for one in alpha.T:
        expected = normal.cdf(one.sort().values.float())
        empirical = (torch.arange(count) + 0.5) / count
        assert (expected - empirical).abs().max() < 1.95 / count**0.5  # Kolmogorov's test at 0.1 %
    assert 4 < alpha.abs().max() < 4.4


def test_a_shift_does_not_depend_on_the_batch():
    seeds = seeds_of(1000)
    whole = lighting(seeds, 0.1, 10)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lighting(seeds[order], 0.1, 10), whole[order])
    for count in (1, 3, 17):
        assert torch.equal(lighting(seeds[5 : 5 + count], 0.1, 10), whole[5 : 5 + count])


def test_views_and_slots_differ_and_sigma_scales():
    shift = lighting(seeds_of(100), 0.1, 10)
    for other in (lighting(seeds_of(100, view=1), 0.1, 10), lighting(seeds_of(100), 0.1, 13)):
        assert (shift != other).all()
    torch.testing.assert_close(lighting(seeds_of(100), 0.2, 10), 2 * shift)


def test_frozen_values():
    expected = [
        [-0.002424781559, -0.004432027435, -0.006078262491],
        [-0.003868662537, -0.002563241155, -0.002227682464],
    ]
    ours = lighting(seeds_of(2), 0.1, 10)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_accelerator_gives_the_same_shifts():
    assert torch.equal(lighting(seeds_of(500).cuda(), 0.1, 10).cpu(), lighting(seeds_of(500), 0.1, 10))
