"""Metrics of a classifier: accuracy, accuracy by class, likelihood and calibration.

Shape letters: B batch, N samples, C classes, K best classes, M bins of confidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd import ranks
from disk_kd.errors import DataError, ModelError
from disk_kd.logits import logits_of

ECE_BINS = 15
_LOG_TEMPERATURES = (math.log(0.01), math.log(100.0))
_NO_SAMPLES = "there are no samples to evaluate; give a split that is not empty"


@dataclass(frozen=True)
class Metrics:
    """Metrics of a classifier on a labelled set.

    Args:
        top1: percentage of samples whose label is the most probable class.
        top5: percentage of samples whose label is among the five most probable classes (all classes, if there are
            fewer).
        nll: mean negative log-likelihood of the label, in nats.
        ece: expected calibration error, a fraction of 1: over 15 bins, equally wide in the confidence of the
            most probable class, the sum of (samples in the bin / samples) |accuracy - mean confidence|.
            Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
        samples: number of samples.
        balanced: balanced accuracy, a percentage: the mean over the classes with samples of their top-1.
        balanced_error: standard error of `balanced` in percentage points (`balanced_error`).
        macro_f1: percentage: the mean of F1 = 2 hits / (samples + predictions) over the classes with samples or
            predictions.
        worst_class: number of the class with the lowest top-1; the first one of several.
        worst_top1: its top-1, a percentage.
    """

    top1: float
    top5: float
    nll: float
    ece: float
    samples: int
    balanced: float
    balanced_error: float
    macro_f1: float
    worst_class: int
    worst_top1: float

    def as_dict(self) -> dict[str, float]:
        """The metrics by name."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    loader_or_batches: Any,
    *,
    device: torch.device | str,
    num_classes: int,
    autocast_dtype: torch.dtype | None = None,
    temperature: float = 1.0,
    across_ranks: bool = False,
) -> Metrics:
    """Metrics of a model over all samples of an epoch, in eval mode. Afterwards each module has its previous mode.

    The sums are kept on the device, in float64 if it supports it; the host waits once, at the end. A row of logits with
    NaN counts as wrong and makes the NLL and the ECE NaN.

    Args:
        model: maps images (B, ...) to logits (B, C).
        loader_or_batches: batches (images, targets, ...), or a `disk_kd.data.Loader`, of which epoch 0 is used.
        device: device of the model.
        num_classes: C.
        autocast_dtype: autocast type of the forward pass; None: no autocast.
        temperature: the logits are divided by it.
        across_ranks: each process has a part of the samples; the metrics cover all of them.

    Raises:
        DataError: there are no samples.
        ModelError: the model does not give `num_classes` logits.
    """
    sums: Tensor | None = None
    with torch.inference_mode(), _eval_mode(model):
        for logits_BC, targets_B in _outputs(model, loader_or_batches, device, autocast_dtype):
            if logits_BC.shape[1:] != (num_classes,):
                raise ModelError(
                    f"the model gives outputs {tuple(logits_BC.shape)}, expected ({len(targets_B)}, {num_classes}) "
                    f"for {num_classes} classes; make the model for this dataset"
                )
            batch_sums = _sums(logits_BC / temperature, targets_B)
            sums = batch_sums if sums is None else sums + batch_sums
    if across_ranks:
        nothing = torch.zeros(ECE_BINS + 1 + num_classes, 3, dtype=_sum_dtype(torch.device(device)), device=device)
        sums = ranks.total(nothing if sums is None else sums)
    if sums is None or not sums.any():
        raise DataError(_NO_SAMPLES)
    return _metrics(sums)


def metrics_of(logits_NC: Tensor, targets_N: Tensor) -> Metrics:
    """The metrics of `evaluate` for given logits, on the host."""
    return evaluate(nn.Identity(), [(logits_NC, targets_N)], device="cpu", num_classes=logits_NC.shape[1])


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader_or_batches: Any,
    *,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    across_ranks: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits (N, C), float32, and targets (N,) of an epoch, on the host, for example to fit a temperature.

    Arguments as for `evaluate`.

    Raises:
        DataError: there are no samples.
    """
    with _eval_mode(model):
        outputs = [
            (logits_BC.float().cpu(), targets_B.cpu())
            for logits_BC, targets_B in _outputs(model, loader_or_batches, device, autocast_dtype)
        ]
    if across_ranks:
        outputs = [pair for pairs in ranks.gather(outputs) for pair in pairs]
    if not outputs:
        raise DataError(_NO_SAMPLES)
    logits, targets = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(targets)


@torch.no_grad()
def temperature_scaled_nll(logits_NC: Tensor, targets_N: Tensor) -> tuple[float, float, float]:
    """The temperature that minimises the NLL of given logits, and NLL and ECE at it.

    min over T in [0.01, 100] of mean_i cross_entropy(z_i / T, y_i)

    The NLL is convex in 1/T, so it has one minimum, where its derivative, mean_i (sum_c p_c z_c - z_y), changes
    sign; Brent's method on log T finds it. Source: Guo et al., 2017, section 4.2, who fit it on a
    validation set.

    Args:
        logits_NC: (N, C), finite.
        targets_N: (N,) class indices.

    Returns:
        Temperature, NLL in nats, and ECE as a fraction.
    """
    logits_NC = logits_NC.to(_sum_dtype(logits_NC.device))
    label_logits_N = logits_NC.gather(1, targets_N[:, None]).squeeze(1)

    def slope(log_temperature: float) -> float:
        probabilities_NC = (logits_NC / math.exp(log_temperature)).softmax(1)
        return float(((probabilities_NC * logits_NC).sum(1) - label_logits_N).mean())

    low, high = _LOG_TEMPERATURES
    # Where the NLL rises with 1/T, the minimum has a higher T.
    if not slope(low) > 0:
        temperature = math.exp(low)
    elif not slope(high) < 0:
        temperature = math.exp(high)
    else:
        from scipy.optimize import brentq  # here, because it takes half a second to import

        temperature = math.exp(brentq(slope, low, high))
    metrics = _metrics(_sums(logits_NC / temperature, targets_N))
    return temperature, metrics.nll, metrics.ece


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block. Afterwards each module has its previous mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _outputs(
    model: nn.Module,
    loader_or_batches: Any,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets of each batch, on the device."""
    device = torch.device(device)
    autocast = torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
    batches = loader_or_batches.batches(0) if hasattr(loader_or_batches, "batches") else loader_or_batches
    for images, targets_B, *_ in batches:
        with autocast:
            logits_BC = logits_of(model(images.to(device, non_blocking=True)), model)
        yield logits_BC, targets_B.to(device, non_blocking=True).long()


def _sums(logits_BC: Tensor, targets_B: Tensor) -> Tensor:
    """Sums over a batch, (M + 1 + C, 3): samples, confidence and hits of each bin; NLL, top-5 hits and 0; samples,
    predictions and hits of each class.
    """
    log_p_BC = logits_BC.to(_sum_dtype(logits_BC.device)).log_softmax(1)
    nll_B = -log_p_BC.gather(1, targets_B[:, None]).squeeze(1)
    best_BK = log_p_BC.topk(min(5, log_p_BC.shape[1]), dim=1)
    hit_BK = (best_BK.indices == targets_B[:, None]) & ~nll_B.isnan()[:, None]
    hit_BK = hit_BK.to(log_p_BC.dtype)
    confidence_B = best_BK.values[:, 0].exp()
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=log_p_BC.dtype, device=log_p_BC.device)
    bins = torch.arange(ECE_BINS, device=log_p_BC.device)
    in_bin_BM = torch.bucketize(confidence_B, edges[1:-1])[:, None] == bins
    per_sample_B3 = torch.stack([torch.ones_like(nll_B), confidence_B, hit_BK[:, 0]], dim=1)
    # A sum of products rather than a scatter: its order, so its rounding, is the same every time.
    per_bin_M3 = (in_bin_BM[:, :, None] * per_sample_B3[:, None, :]).sum(0)
    rest_3 = torch.stack([nll_B.sum(), hit_BK.sum(), nll_B.new_zeros(())])
    # Sums of ones are exact in any order.
    per_class_3C = log_p_BC.new_zeros(3, log_p_BC.shape[1])
    for row_C, classes_B, counts_B in zip(
        per_class_3C,
        (targets_B, best_BK.indices[:, 0], targets_B),
        (torch.ones_like(nll_B), torch.ones_like(nll_B), hit_BK[:, 0]),
        strict=True,
    ):
        row_C.scatter_add_(0, classes_B, counts_B)
    return torch.cat([per_bin_M3, rest_3[None], per_class_3C.T])


def _metrics(sums: Tensor) -> Metrics:
    """Metrics from the result of `_sums`, added up over all batches."""
    rows = sums.tolist()
    per_bin, (nll, top5, _), per_class = rows[:ECE_BINS], rows[ECE_BINS], rows[ECE_BINS + 1 :]
    samples = round(sum(count for count, _, _ in per_bin))
    return Metrics(
        top1=100 * sum(hits for _, _, hits in per_bin) / samples,
        top5=100 * top5 / samples,
        nll=nll / samples,
        ece=sum(abs(hits - confidence) for _, confidence, hits in per_bin) / samples,
        samples=samples,
        **_by_class(per_class),
    )


def _by_class(per_class: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The metrics of samples, predictions and hits of each class."""
    recall = {label: 100 * hits / count for label, (count, _, hits) in enumerate(per_class) if count}
    worst = min(recall, key=lambda label: recall[label])
    f1 = [200 * hits / (count + predicted) for count, predicted, hits in per_class if count + predicted]
    return {
        "balanced": sum(recall.values()) / len(recall),
        "balanced_error": balanced_error([(round(hits), round(count)) for count, _, hits in per_class if count]),
        "macro_f1": sum(f1) / len(f1),
        "worst_class": worst,
        "worst_top1": recall[worst],
    }


def balanced_error(classes: Sequence[tuple[int, int]]) -> float:
    """Standard error of a balanced accuracy, in percentage points.

    100 / C sqrt(sum_c p_c (1 - p_c) / n_c), p_c = (right_c + q) / (n_c + 1), q = (right + 2) / (n + 4)

    It is the error of a mean of C independent shares, as of a stratified sample. A class of few images raises it, which
    the binomial error of all n images would hide. Each class gets one more answer, with the accuracy q of all images,
    so that a class of one or two images that are all right does not count as certain. If all classes have the same
    accuracy and number of images, it is nearly the binomial error of all images.

    Args:
        classes: right answers and images of each class that has images.
    """
    right, images = (sum(numbers) for numbers in zip(*classes, strict=True))
    q = (right + 2) / (images + 4)
    shares = [((hits + q) / (count + 1), count) for hits, count in classes]
    return 100 / len(classes) * math.sqrt(sum(p * (1 - p) / count for p, count in shares))


def _sum_dtype(device: torch.device) -> torch.dtype:
    """Double precision; single precision on Apple's devices, which lack it."""
    return torch.float32 if device.type == "mps" else torch.float64
