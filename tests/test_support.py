from __future__ import annotations

import pytest
import torch

from disk_kd.errors import ConfigError
from disk_kd.support import GAMMA, at_least_float32, check_batch, log_add_helper, mix, other_classes, support


def test_lists_each_member_once() -> None:
    teacher_BC = torch.tensor([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    index_BM, member_BM = support(teacher_BC, torch.tensor([0, 3, 2]), 2)
    members = [sorted(index[member].tolist()) for index, member in zip(index_BM, member_BM, strict=True)]
    assert members == [[0, 1], [0, 1, 3], [2, 3]]
    assert index_BM[:, -1].tolist() == [0, 3, 2]


def test_all_classes_are_members_at_the_largest_k() -> None:
    index_BM, member_BM = support(torch.zeros(2, 4), torch.tensor([1, 2]), 4)
    assert member_BM.sum(1).tolist() == [4, 4]
    assert sorted(index_BM[0, :4].tolist()) == [0, 1, 2, 3]


def members(teacher_BC: torch.Tensor, targets: torch.Tensor, top_k: int) -> list[list[int]]:
    index_BM, member_BM = support(teacher_BC, targets, top_k)
    return [sorted(index[member].tolist()) for index, member in zip(index_BM, member_BM, strict=True)]


def test_both_labels_of_a_mixed_image_are_members() -> None:
    teacher_BC = torch.tensor([[5.0, 4.0, 3.0, 2.0]]).expand(4, 4)
    shares = [[0.0, 0.0, 0.6, 0.4], [0.9, 0.0, 0.1, 0.0], [0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert members(teacher_BC, torch.tensor(shares), 1) == [[0, 2, 3], [0, 2], [0, 1], [0, 3]]
    # Smoothing gives each class a little, which makes no label of it.
    assert members(teacher_BC, 0.9 * torch.tensor(shares) + 0.1 / 4, 1) == [[0, 2, 3], [0, 2], [0, 1], [0, 3]]
    # A mixed image of one class is of that class, and equal shares of two classes are all there is.
    assert members(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), 0)[0] in ([0], [1])


def test_whole_shares_are_labels() -> None:
    teacher_BC = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    targets_B = torch.arange(20) % 6
    shares_BC = torch.nn.functional.one_hot(targets_B, 6).float()
    assert members(teacher_BC, shares_BC, 3) == members(teacher_BC, targets_B, 3)
    with_mass = [support(teacher_BC, targets, 4, mass=0.6) for targets in (targets_B, shares_BC)]
    assert torch.equal(with_mass[0][1].sum(1), with_mass[1][1].sum(1))


@pytest.mark.parametrize("top_k", [-1, 5])
def test_refuses_k_outside_the_classes(top_k: int) -> None:
    with pytest.raises(ConfigError, match=f"top_k must be from 0 to the 4 classes, got {top_k}"):
        support(torch.zeros(2, 4), torch.tensor([1, 2]), top_k)


def test_other_classes_keep_their_order() -> None:
    x_BC = torch.arange(12).view(3, 4)
    assert other_classes(x_BC, torch.tensor([0, 2, 3])).tolist() == [[1, 2, 3], [4, 5, 7], [8, 9, 10]]


def test_mixes_as_splitmix64() -> None:
    """The first numbers of its published generator from seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    mixed = mix(1234567 + torch.arange(1, 5) * GAMMA)
    assert [number % 2**64 for number in mixed.tolist()] == published


def test_a_batch_that_is_too_small_is_refused() -> None:
    check_batch("a loss", 2, least=2)
    with pytest.raises(ConfigError, match="a loss needs a batch of at least 2 images, got 1; raise the batch size, or"):
        check_batch("a loss", 1, least=2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_never_works_below_float32(given: torch.dtype, expected: torch.dtype) -> None:
    assert at_least_float32(torch.ones(1, dtype=given)).dtype == expected


def test_log_of_the_sum_and_its_gradients() -> None:
    log_s_BM = torch.tensor([[-0.1, -3.0, -50.0, -1e4], [-2.0, -1.0, -0.5, -300.0]], dtype=torch.float64)
    helper_B = torch.tensor([0.2, 1e-3], dtype=torch.float64)
    log_s_BM.requires_grad_()
    helper_B.requires_grad_()
    total_BM = log_add_helper(log_s_BM, helper_B)
    torch.testing.assert_close(total_BM, torch.log(log_s_BM.exp() + helper_B[:, None]))
    torch.autograd.gradcheck(log_add_helper, (log_s_BM, helper_B))


def test_log_of_the_sum_without_help_is_exact() -> None:
    log_s_BM = torch.tensor([[-0.1, -3.0, -50.0, -1e4]])
    none_B = torch.zeros(1, requires_grad=True)
    total_BM = log_add_helper(log_s_BM, none_B)
    assert torch.equal(total_BM, log_s_BM)
    (gradient_B,) = torch.autograd.grad(total_BM[0, 1], none_B)
    assert gradient_B.item() == pytest.approx(torch.tensor(3.0).exp().item())
