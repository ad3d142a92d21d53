"""Encodings of stored outputs: half precision, logits relative to their largest, or only the K largest logits.

An encoding converts a batch of outputs to rows of a file and back. `item` is the NumPy type of one row in the file's
header. `encode` and `decode` work on tensors of any device.

Shape letters: B batch, C classes, K classes that are kept, R bytes of a row, T temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from disk_kd.errors import ConfigError

HALF_MAX = 65504.0
"""Largest number in half precision."""

TEMPERATURES = (1.0, 2.0, 4.0)
"""Temperatures at which the error of stored logits is measured."""

_NUMPY = {torch.float16: "<f2", torch.float32: "<f4"}
SHIFTED, UNSHIFTED = "float16 below the largest logit", "float16"
"""Types of stored logits: today's, and version 0.1's."""

_UINT16_CLASSES = 1 << 16
_FAR = 1e30


class Encoding(Protocol):
    """How an output is stored in rows of a file.

    Attributes:
        shape: shape of the output of one sample.
        item: type of one row of the file.
    """

    shape: tuple[int, ...]
    item: np.dtype

    def encode(self, output: Tensor) -> Tensor:
        """Rows to store, (B, ...), for outputs (B, ...)."""

    def decode(self, rows: Tensor) -> Tensor:
        """Outputs, float32 (B, ...), for rows that `encode` made."""


class Plain:
    """Every number rounded to `dtype`. Numbers above its range become its largest number.

    Args:
        shape: shape of the output of one sample.
        dtype: float16 or float32.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> None:
        self.shape, self.dtype = shape, dtype
        self.item = np.dtype((_NUMPY[dtype], shape))

    def encode(self, output: Tensor) -> Tensor:
        largest = torch.finfo(self.dtype).max
        return output.clamp(-largest, largest).to(self.dtype)

    def decode(self, rows: Tensor) -> Tensor:
        return rows.float()


class TopK:
    """The K largest of C logits, their classes, and one number for all other classes.

        rest = log sum_{c not kept} exp(z_c);   every class that is not kept reads as rest - log(C - K)

    The softmax at temperature 1 is exact, up to half precision, on the K classes and for the sum of the others. The
    shares of the others in that sum are lost. At other temperatures their sum is an approximation.

    A row is R = 4 K + 2 bytes up to 65,536 classes, 6 K + 2 above: values (float16), classes (uint16 or int32),
    rest (float16). Half precision is enough for the rest: it has the size of the logits, and so has its error.

    Args:
        num_classes: C.
        k: K.

    Raises:
        ConfigError: K is not from 1 to C - 1.
    """

    def __init__(self, num_classes: int, k: int) -> None:
        if not 1 <= k < num_classes:
            raise ConfigError(f"top_k is expected from 1 to {num_classes - 1} for {num_classes} classes, got {k}")
        self.shape: tuple[int, ...] = (num_classes,)
        self.k = k
        # torch computes little with uint16: the same 16 bits are held as int16.
        self._short = num_classes <= _UINT16_CLASSES
        class_type = "<u2" if self._short else "<i4"
        self.item = np.dtype([("values", "<f2", (k,)), ("classes", class_type, (k,)), ("rest", "<f2")])

    def encode(self, output: Tensor) -> Tensor:
        """Rows (B, R) of bytes for logits (B, C)."""
        values_BK, classes_BK = output.topk(self.k, dim=1)
        rest_B1 = output.scatter(1, classes_BK, -math.inf).logsumexp(1, keepdim=True)
        parts = (_half(values_BK), classes_BK.to(torch.int16 if self._short else torch.int32), _half(rest_B1))
        return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """Logits (B, C) for rows (B, R) of bytes."""
        ends = 2 * self.k, rows.shape[1] - 2
        values_BK = _as(rows[:, : ends[0]], torch.float16).float()
        classes_BK = _as(rows[:, ends[0] : ends[1]], torch.int16 if self._short else torch.int32).long()
        if self._short:
            classes_BK &= _UINT16_CLASSES - 1
        rest_B1 = _as(rows[:, ends[1] :], torch.float16).float()
        (num_classes,) = self.shape
        other_B1 = rest_B1 - math.log(num_classes - self.k)
        return other_B1.repeat(1, num_classes).scatter_(1, classes_BK, values_BK)


class Shifted:
    """Logits minus their largest, in another encoding, and the largest logit in single precision.

    A large common offset of all logits then costs no precision.

    Args:
        inner: encoding of the differences. A row is four bytes longer.
    """

    def __init__(self, inner: Plain | TopK) -> None:
        self.inner, self.shape = inner, inner.shape
        names = inner.item.names
        fields = [("values", inner.item)] if names is None else [(name, inner.item[name]) for name in names]
        self.item = np.dtype([("largest", "<f4"), *fields])

    def encode(self, output: Tensor) -> Tensor:
        """Rows (B, R) of bytes for logits (B, C)."""
        largest_B1 = output.float().amax(1, keepdim=True)
        rows = self.inner.encode(output.float() - largest_B1)
        return torch.cat([part.contiguous().view(torch.uint8) for part in (largest_B1, rows)], dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """Logits (B, C) for rows (B, R) of bytes."""
        inner = rows[:, 4:] if self.inner.item.names else _as(rows[:, 4:], torch.float16)
        return self.inner.decode(inner) + _as(rows[:, :4], torch.float32)


def encoding_of(need: str, shape: Sequence[int], top_k: int | None, dtype: str = SHIFTED) -> Encoding:
    """The encoding of an output. Logits are stored as their `top_k` largest, if given.

    Args:
        need, shape, top_k: name of the output, its shape per sample, and the number of logits to store.
        dtype: type of the store: `SHIFTED` or `UNSHIFTED`.

    Raises:
        ConfigError: `top_k` does not fit the classes.
    """
    if need != "logits":
        return Plain(tuple(shape))
    inner = Plain(tuple(shape)) if top_k is None else TopK(math.prod(shape), top_k)
    return Shifted(inner) if dtype == SHIFTED else inner


def unusable(need: str, output: Tensor) -> Tensor:
    """Marks the rows (B,) of a teacher's output that contain NaN or numbers too large for the teacher's precision.

    A logit of minus infinity is a masked class, unless all logits of the row are.
    """
    if need == "logits":
        return ~output.flatten(1).amax(1).isfinite()
    return ~output.flatten(1).isfinite().all(1)


def kl_of_storing(logits_BC: Tensor, stored_BC: Tensor) -> Tensor:
    """Change of the logits by storing, per sample and temperature in `TEMPERATURES`, in nats.

        p = softmax(logits / T),  q = softmax(stored / T),  d = log p - log q
        KL(p || q) = sum_c p_c d_c = sum_c p_c (exp(-d_c) - 1 + d_c)

    The second form holds because p and q sum to one. Its terms are not negative, so float32 resolves divergences far
    below its own rounding.

    Args:
        logits_BC: (B, C), the teacher's logits.
        stored_BC: (B, C), the logits as read back.

    Returns:
        float32 (B, T).
    """
    # An infinite logit is stored as the largest number; here it may be any other that float32 can subtract.
    logits_BC = logits_BC.float().clamp(-_FAR, _FAR)
    kl = []
    for temperature in TEMPERATURES:
        log_p, log_q = (z.div(temperature).log_softmax(1) for z in (logits_BC, stored_BC))
        p, d = log_p.exp(), log_p - log_q
        # Where q is far above p, exp(-d) may overflow, and the plain difference is exact enough.
        terms = torch.where(d > -1, p * (torch.expm1(-d) + d), log_q.exp() - p + p * d)
        kl.append(terms.sum(1))
    return torch.stack(kl, dim=1)


def _half(values: Tensor) -> Tensor:
    return values.clamp(-HALF_MAX, HALF_MAX).half()


def _as(bytes_BR: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy in any case: a slice of one row counts as contiguous, whatever the length of the row.
    return bytes_BR.clone(memory_format=torch.contiguous_format).view(dtype)
