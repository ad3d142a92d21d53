from __future__ import annotations

import pytest
import torch

from disk_kd.data.sampling import flip_labels, set_aside, stratified


def uneven(sizes: tuple[int, ...] = (50, 7, 1, 142)) -> torch.Tensor:
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("count", [0, 1, 20, 57, 199, 200])
def test_each_class_is_in_proportion(count: int):
    targets = uneven()
    chosen = stratified(targets, torch.arange(200), count, -1, 0)
    assert len(chosen.unique()) == len(chosen) == count
    assert torch.equal(chosen, chosen.sort().values)
    expected = torch.tensor([50, 7, 1, 142]) * count / 200
    assert (targets[chosen].bincount(minlength=4) - expected).abs().max() < 1


def test_choice_depends_on_seed_and_draw_and_not_on_position():
    targets, ids = uneven(), torch.arange(200) + 1000
    base = stratified(targets, ids, 40, -1, 0)
    assert torch.equal(stratified(targets, ids, 40, -1, 0), base)
    assert not torch.equal(stratified(targets, ids, 40, -1, 1), base)
    assert not torch.equal(stratified(targets, ids, 40, -2, 0), base)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    moved = stratified(targets[order], ids[order], 40, -1, 0)
    assert torch.equal(order[moved].sort().values, base)


def test_classes_of_equal_size_share_what_is_left_over_by_chance():
    targets = torch.arange(100).repeat(10)
    chosen = stratified(targets, torch.arange(1000), 150, -1, 0)
    counts = targets[chosen].bincount(minlength=100)
    assert counts.unique().tolist() == [1, 2]
    assert counts[:50].sum() not in (50, 100)  # neither the first nor the last classes are preferred


def test_set_aside_divides():
    targets = uneven()
    left, chosen = set_aside(targets, torch.arange(200), 30, -1, 0)
    assert torch.equal(torch.cat([left, chosen]).sort().values, torch.arange(200))
    assert torch.equal(chosen, stratified(targets, torch.arange(200), 30, -1, 0))


def test_frozen_choice():
    targets = torch.arange(20) % 2
    assert stratified(targets, torch.arange(20), 4, -1, 0).tolist() == [4, 10, 11, 19]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_labels_are_flipped_to_other_classes(fraction: float):
    targets = torch.arange(5).repeat(400)
    noisy = flip_labels(targets, torch.arange(2000), fraction, 5, 0)
    changed = noisy != targets
    assert int(changed.sum()) == round(2000 * fraction)
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < 5
    if fraction:
        steps = ((noisy - targets) % 5)[changed].bincount(minlength=5)
        assert steps[0] == 0
        assert (steps[1:] - changed.sum() / 4).abs().max() < 5 * (changed.sum() / 4).sqrt()


def test_more_noise_flips_the_same_labels_and_more():
    targets, ids = torch.arange(10).repeat(50), torch.arange(500)
    less, more = (flip_labels(targets, ids, fraction, 10, 0) for fraction in (0.1, 0.3))
    assert torch.equal(less[less != targets], more[less != targets])
