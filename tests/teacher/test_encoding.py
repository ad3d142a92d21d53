"""Encodings of outputs: what comes back, how near it is, and the divergence that states it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.teacher.encoding import (
    TEMPERATURES,
    UNSHIFTED,
    Plain,
    Shifted,
    TopK,
    encoding_of,
    kl_of_storing,
    unusable,
)


def logits(samples: int, classes: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(samples, classes, generator=torch.Generator().manual_seed(0))


def exact_kl(true: Tensor, read: Tensor) -> Tensor:
    """KL in float64, (B, T)."""
    pairs = [((true.double() / t).log_softmax(1), (read.double() / t).log_softmax(1)) for t in TEMPERATURES]
    return torch.stack([(p.exp() * (p - q)).sum(1) for p, q in pairs], dim=1)


def read_back(encoding: Plain | TopK | Shifted, output: Tensor) -> Tensor:
    return encoding.decode(encoding.encode(output))


@pytest.mark.parametrize(("classes", "row_bytes"), [(1000, 4 * 7 + 2), (65_536, 4 * 7 + 2), (65_537, 6 * 7 + 2)])
def test_largest_logits_come_back_at_their_classes(classes: int, row_bytes: int) -> None:
    true = logits(3, classes)
    true[0, classes - 1] = 100.0  # the last class is the largest number that an index may be
    encoding = TopK(classes, 7)
    rows = encoding.encode(true)
    assert rows.shape == (3, row_bytes)
    assert encoding.item.itemsize == row_bytes
    read = encoding.decode(rows)
    kept = true.topk(7, dim=1).indices
    assert torch.equal(read.gather(1, kept), true.gather(1, kept).half().float())
    others = read.scatter(1, kept, math.inf).amin(1)
    rest = true.scatter(1, kept, -math.inf).logsumexp(1)
    torch.testing.assert_close(others + math.log(classes - 7), rest, rtol=2**-11, atol=1e-5)
    assert (read == others[:, None]).sum() == 3 * (classes - 7)


def test_all_but_one_logit_lose_only_precision() -> None:
    true = logits(5, 10)
    torch.testing.assert_close(read_back(TopK(10, 9), true), true, rtol=2**-11, atol=1e-4)


def test_at_temperature_one_the_sum_of_the_others_is_kept() -> None:
    true = logits(5, 1000)
    kept = true.topk(20, dim=1).indices
    masses = [z.softmax(1).scatter(1, kept, 0).sum(1) for z in (true, read_back(TopK(1000, 20), true))]
    torch.testing.assert_close(masses[1], masses[0], rtol=5e-3, atol=0)


@pytest.mark.parametrize("extreme", [1e5, -1e5, math.inf, -math.inf])
def test_extreme_logits_come_back_finite(extreme: float) -> None:
    true = logits(2, 8)
    true[0, 3] = extreme
    for encoding in (Plain((8,)), TopK(8, 2)):
        read = read_back(encoding, true)
        assert read.isfinite().all()
        assert kl_of_storing(true, read).isfinite().all()


@pytest.mark.parametrize("k", [0, 8])
def test_a_number_of_logits_that_is_no_selection_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"top_k is expected from 1 to 7 for 8 classes, got {k}"):
        TopK(8, k)


def test_only_logits_are_cut() -> None:
    assert encoding_of("logits", [8], 2).item.names == ("largest", "values", "classes", "rest")
    assert encoding_of("logits", [8], None).item.names == ("largest", "values")
    assert isinstance(encoding_of("map", [8, 2, 2], 2), Plain)


def test_what_version_0_1_stored_is_read() -> None:
    assert isinstance(encoding_of("logits", [8], 2, UNSHIFTED), TopK)
    assert isinstance(encoding_of("logits", [8], None, UNSHIFTED), Plain)


@pytest.mark.parametrize("inner", [Plain((200,)), TopK(200, 150)])
@pytest.mark.parametrize("common", [3000.0, -3000.0])
def test_a_number_that_all_logits_have_in_common_costs_no_precision(inner: Plain | TopK, common: float) -> None:
    true = logits(20, 200)
    read = read_back(Shifted(inner), true + common)
    plain = kl_of_storing(true, read_back(Shifted(inner), true))
    assert kl_of_storing(true + common, read).max() < 2 * plain.max() + 1e-6
    torch.testing.assert_close(read.amax(1), true.amax(1) + common, rtol=1e-6, atol=0)


def test_masked_classes_have_no_probability_and_the_others_keep_theirs() -> None:
    true = logits(4, 8)
    true[:, 5:] = -math.inf
    read = read_back(Shifted(Plain((8,))), true)
    assert kl_of_storing(true, read).max() < 1e-5
    assert read[:, 5:].softmax(1).isfinite().all()


@pytest.mark.parametrize("inner", [Plain((8,)), TopK(8, 2)])
def test_logits_beyond_half_precision_keep_their_order(inner: Plain | TopK) -> None:
    true = 1e6 * logits(4, 8)
    read = read_back(Shifted(inner), true)
    assert read.isfinite().all()
    assert torch.equal(read.argmax(1), true.argmax(1))
    assert kl_of_storing(true, read).max() == 0


def test_what_no_student_can_learn_from() -> None:
    rows = torch.tensor([[1.0, -math.inf], [math.inf, 0.0], [math.nan, 0.0], [-math.inf, -math.inf]])
    assert unusable("logits", rows).tolist() == [False, True, True, True]
    assert unusable("pooled", rows).tolist() == [True] * 4


@pytest.mark.parametrize("encoding", [Plain((200,)), TopK(200, 5), TopK(200, 199)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_the_divergence_is_that_of_float64(encoding: Plain | TopK, scale: float) -> None:
    true = logits(50, 200, scale)
    read = read_back(encoding, true)
    torch.testing.assert_close(kl_of_storing(true, read).double(), exact_kl(true, read), rtol=0.02, atol=1e-9)


def test_nothing_changed_is_no_divergence() -> None:
    assert kl_of_storing(logits(3, 9), logits(3, 9)).eq(0).all()


def test_more_logits_diverge_less() -> None:
    true = logits(50, 200)
    kl = [kl_of_storing(true, read_back(TopK(200, k), true)).mean(0) for k in (5, 20, 80)]
    assert (kl[0] > kl[1]).all()
    assert (kl[1] > kl[2]).all()
