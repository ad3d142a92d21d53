"""Metrics against a slow reference, by hand, and by their identities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from disk_kd.errors import DataError, ModelError
from disk_kd.metrics import Metrics, balanced_error, evaluate, predict, temperature_scaled_nll
from disk_kd.training.selection import selection_margin


class Batch(NamedTuple):
    images: Tensor
    targets: Tensor
    ids: Tensor
    view: int


def sample(n: int = 200, classes: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that favour the label a little."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits + 1.5 * nn.functional.one_hot(targets, classes), targets


def batches(logits: Tensor, targets: Tensor, size: int = 32) -> Iterator[Batch]:
    """Batches whose images are the logits, for a model that returns its input."""
    for images, labels in zip(logits.split(size), targets.split(size), strict=True):
        yield Batch(images, labels, labels, 0)


def measure(logits: Tensor, targets: Tensor, size: int = 32, **options: Any) -> Metrics:
    return evaluate(nn.Identity(), batches(logits, targets, size), device="cpu", num_classes=logits.shape[1], **options)


def reference(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The definitions, one sample at a time."""
    n, classes = logits.shape
    top1 = top5 = nll = 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits, targets, strict=True):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        order = sorted(range(classes), key=lambda c: -row[c])
        top1 += order[0] == label
        top5 += label in order[:5]
        nll -= math.log(p[label])
        bins[min(14, math.ceil(p.max() * 15) - 1)].append((p.max(), order[0] == label))
    gaps = [len(b) / n * abs(sum(hit for _, hit in b) / len(b) - sum(c for c, _ in b) / len(b)) for b in bins if b]
    found = {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "nll": nll / n, "ece": sum(gaps), "samples": n}
    return found | by_class(logits.argmax(1).tolist(), targets.tolist())


def by_class(predicted: list[int], labels: list[int]) -> dict[str, float]:
    """The metrics of classes, one class at a time."""
    pairs = list(zip(predicted, labels, strict=True))
    q = (sum(one == label for one, label in pairs) + 2) / (len(pairs) + 4)
    recall, f1, variance = {}, [], 0.0
    for c in sorted({*predicted, *labels}):
        hits, count = sum(one == label == c for one, label in pairs), labels.count(c)
        f1.append(100 * 2 * hits / (predicted.count(c) + count))
        if count:
            recall[c] = 100 * hits / count
            p = (hits + q) / (count + 1)
            variance += p * (1 - p) / count
    worst = min(recall, key=lambda c: (recall[c], c))
    return {
        "balanced": sum(recall.values()) / len(recall),
        "balanced_error": 100 * math.sqrt(variance) / len(recall),
        "macro_f1": sum(f1) / len(f1),
        "worst_class": worst,
        "worst_top1": recall[worst],
    }


@pytest.mark.parametrize(("n", "classes"), [(200, 12), (37, 5), (50, 3), (1, 2)])
def test_against_the_slow_reference(n: int, classes: int) -> None:
    logits, targets = sample(n, classes, seed=n)
    assert measure(logits, targets).as_dict() == pytest.approx(reference(logits.numpy(), targets.numpy()), abs=1e-12)


def test_frozen_numbers() -> None:
    logits = (5 * torch.cos(1.7 * torch.arange(60, dtype=torch.float64) ** 1.3)).reshape(10, 6)
    metrics = measure(logits, torch.arange(10) % 6)
    frozen = {"top1": 20, "top5": 90, "nll": 4.377281969113008, "ece": 0.5791642105761478, "samples": 10}
    assert metrics.as_dict() == pytest.approx(metrics.as_dict() | frozen, rel=1e-12)


def test_ece_by_hand() -> None:
    # Two classes. Confidences .6 .6 (one right), .9 .9 .9 (all right), .5 (right); bins of 1/15: .6 in bin 8,
    # .9 in bin 13, .5 in bin 7. ECE = (|1 - 1.2| + |3 - 2.7| + |1 - .5|) / 6 = 1/6.
    confidence = torch.tensor([0.6, 0.6, 0.9, 0.9, 0.9, 0.5], dtype=torch.float64)
    logits = torch.stack([confidence.log(), (1 - confidence).log()], dim=1)
    logits[5, 0] += 1e-12
    targets = torch.tensor([0, 1, 0, 0, 0, 0])
    metrics = measure(logits, targets, size=4)
    assert metrics.ece == pytest.approx(1 / 6, abs=1e-9)
    assert metrics.top1 == pytest.approx(100 * 5 / 6)
    assert metrics.top5 == 100


@pytest.mark.parametrize(("nudge", "expected"), [(-1e-9, (1 - 1 / 3 - 0.3) / 2), (1e-9, (1 - 1 / 3 + 0.3) / 2)])
def test_ece_bins_end_at_fifteenths(nudge: float, expected: float) -> None:
    # A hit at a confidence of 5/15 and a miss at .3: just below the edge they share a bin and cancel in part.
    rows = [[1 / 3, 2 / 9, 2 / 9, 2 / 9], [0.3, 0.24, 0.23, 0.23]]
    logits = torch.tensor(rows, dtype=torch.float64).log()
    logits[0, 0] += nudge
    assert measure(logits, torch.tensor([0, 1])).ece == pytest.approx(expected, abs=1e-8)


def test_a_perfect_and_a_blind_model() -> None:
    targets = torch.arange(10)
    perfect = measure(100.0 * nn.functional.one_hot(targets, 10).double(), targets)
    right = {"top1": 100, "top5": 100, "nll": 0, "ece": 0, "samples": 10, "balanced": 100, "macro_f1": 100}
    assert perfect.as_dict() == pytest.approx(perfect.as_dict() | right, abs=1e-9)
    blind = measure(torch.zeros(10, 10), targets)
    assert blind.nll == pytest.approx(math.log(10))
    assert blind.top1 == pytest.approx(10)
    assert blind.ece == pytest.approx(0, abs=1e-9)


def test_the_batch_size_does_not_matter() -> None:
    logits, targets = sample()
    whole = measure(logits, targets, size=200).as_dict()
    for size in (1, 7, 199):
        assert measure(logits, targets, size=size).as_dict() == pytest.approx(whole, rel=1e-12)


def test_a_shift_of_the_logits_does_not_matter() -> None:
    logits, targets = sample()
    assert measure(logits + 1000, targets).as_dict() == pytest.approx(measure(logits, targets).as_dict(), rel=1e-9)


def test_the_same_twice_to_the_bit() -> None:
    logits, targets = sample()
    assert measure(logits, targets) == measure(logits, targets)


def test_top5_of_three_classes_is_all_of_them() -> None:
    assert measure(*sample(20, classes=3)).top5 == 100


def test_half_precision_logits_are_summed_in_double() -> None:
    logits, targets = sample()
    rounded = logits.bfloat16()
    assert measure(rounded, targets).nll == pytest.approx(measure(rounded.double(), targets).nll, rel=1e-12)


def test_nan_is_told_and_counts_as_wrong() -> None:
    logits, targets = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    logits[:, 0] = 5
    logits[1] = float("nan")
    logits[2, 2] = float("inf")
    metrics = measure(logits, targets, size=3)
    assert math.isnan(metrics.nll)
    assert math.isnan(metrics.ece)
    assert (metrics.top1, metrics.top5, metrics.samples) == (50, 50, 4)


def test_an_impossible_label_has_infinite_nll() -> None:
    metrics = measure(torch.tensor([[0.0, -math.inf], [0.0, 0.0]]), torch.tensor([1, 0]))
    assert metrics.nll == math.inf


class Moody(nn.Module):
    """Gives its logits in eval mode alone, and counts gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
        self.body[0].eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        return self.body(x)


def test_modes_return_and_statistics_stay() -> None:
    model = Moody()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, targets = sample(10, classes=3)
    evaluate(model, batches(logits.float(), targets), device="cpu", num_classes=3)
    predict(model, batches(logits.float(), targets), device="cpu")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError):
        evaluate(model, batches(logits.float(), targets), device="cpu", num_classes=4)
    assert [module.training for module in model.modules()] == modes


def test_autocast_is_for_the_model_alone() -> None:
    model = nn.Linear(4, 3)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    images, targets = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2] * 2)
    evaluate(model, [(images, targets)], device="cpu", num_classes=3, autocast_dtype=torch.bfloat16)
    evaluate(model, [(images, targets)], device="cpu", num_classes=3)
    assert seen == [torch.bfloat16, torch.float32]


class Loader:
    """A loader as of the data room, which remembers the epochs that were asked for."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def batches(self, epoch: int) -> Iterator[Batch]:
        self.epochs.append(epoch)
        return batches(*sample())


def test_of_a_loader_it_takes_the_first_pass() -> None:
    loader = Loader()
    assert evaluate(nn.Identity(), loader, device="cpu", num_classes=12) == measure(*sample())
    assert loader.epochs == [0]


def test_predict_gives_all_logits_in_order() -> None:
    logits, targets = sample()
    got_logits, got_targets = predict(nn.Identity(), batches(logits, targets, 7), device="cpu")
    torch.testing.assert_close(got_logits, logits.float(), rtol=0, atol=0)
    assert torch.equal(got_targets, targets)


def test_errors_say_what_is_wrong() -> None:
    logits, targets = sample(4, classes=3)
    with pytest.raises(ModelError, match=r"outputs \(4, 3\), expected \(4, 10\) for 10 classes"):
        evaluate(nn.Identity(), batches(logits, targets), device="cpu", num_classes=10)
    with pytest.raises(DataError, match="no samples to evaluate"):
        evaluate(nn.Identity(), [], device="cpu", num_classes=3)
    with pytest.raises(DataError, match="no samples to evaluate"):
        predict(nn.Identity(), [], device="cpu")


def calibrated(n: int = 4000, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their own probabilities."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("heat", [0.2, 1.0, 5.0])
def test_the_temperature_undoes_a_scale(heat: float) -> None:
    logits, targets = calibrated()
    temperature, nll, ece = temperature_scaled_nll(logits, targets)
    assert temperature == pytest.approx(1, abs=0.05)
    scaled = temperature_scaled_nll(logits * heat, targets)
    assert scaled == pytest.approx((temperature * heat, nll, ece), rel=1e-9)


def test_no_temperature_near_the_best_does_better() -> None:
    logits, targets = sample()
    temperature, nll, ece = temperature_scaled_nll(logits.float(), targets)
    at = [measure(logits.float().double() / (temperature * f), targets) for f in (0.999, 1.0, 1.001)]
    assert at[1].nll == pytest.approx(nll, rel=1e-12)
    assert at[1].ece == pytest.approx(ece, rel=1e-9)
    assert at[0].nll > at[1].nll < at[2].nll


def test_a_separable_sample_takes_the_smallest_temperature() -> None:
    targets = torch.arange(4)
    assert temperature_scaled_nll(nn.functional.one_hot(targets, 4).double(), targets)[0] == pytest.approx(0.01)
    wrong = (targets + 1) % 4
    assert temperature_scaled_nll(nn.functional.one_hot(targets, 4).double(), wrong)[0] == pytest.approx(100)


def test_a_diverged_sample_has_a_temperature_and_no_nll() -> None:
    logits, targets = sample()
    logits[0, 0] = math.nan
    temperature, nll, ece = temperature_scaled_nll(logits, targets)
    assert temperature == pytest.approx(0.01)
    assert math.isnan(nll)
    assert math.isnan(ece)


def test_classes_by_hand_as_scikit_learn_counts_them() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    # Class 0: 3 of 4 right. Class 1: 1 of 2. Class 2 has no sample, and one prediction. Class 3: 0 of 1.
    targets, predicted = torch.tensor([0, 0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 0, 1, 1, 2, 0])
    metrics = measure(5.0 * nn.functional.one_hot(predicted, 5), targets, size=3)
    assert metrics.balanced == pytest.approx(100 * (3 / 4 + 1 / 2 + 0) / 3)
    assert metrics.macro_f1 == pytest.approx(100 * (6 / 8 + 2 / 4 + 0 + 0) / 4)
    assert metrics.macro_f1 == pytest.approx(100 * f1_score(targets, predicted, average="macro"))
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        assert metrics.balanced == pytest.approx(100 * balanced_accuracy_score(targets, predicted))
    assert (metrics.worst_class, metrics.worst_top1) == (3, 0)


def test_the_error_of_balanced_accuracy_is_the_deviation_of_many_samples() -> None:
    assert balanced_error([(80, 100)] * 10) == pytest.approx(selection_margin(80.0, 1000), rel=1e-3)
    assert balanced_error([(1, 1)] * 4) > 10, "four images that are all right are not certain"
    sizes, chances = np.array([50, 20, 10, 5, 5]), np.array([0.9, 0.8, 0.6, 0.5, 0.3])
    right = np.random.default_rng(0).binomial(sizes, chances, (5000, 5))
    deviation = 100 * (right / sizes).mean(1).std()
    errors = [balanced_error([*zip(one, sizes.tolist(), strict=True)]) for one in right[:500].tolist()]
    assert np.mean(errors) == pytest.approx(deviation, rel=0.1)
    of_all = selection_margin(100 * (chances @ sizes) / sizes.sum(), int(sizes.sum()))
    assert of_all < 0.7 * deviation, "the binomial error of all images is too small"
