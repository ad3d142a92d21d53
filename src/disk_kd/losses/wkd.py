"""Logit distillation by the Wasserstein distance (WKD-L). Legend: B batch, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import (
    LOWEST,
    at_least_float32,
    check_shapes,
    check_temperature,
    log_probabilities,
    teacher_log_probabilities,
)

LEAST_SMOOTHING = 0.025
"""The least weight of the entropy: exp(-cost / smoothing) of the largest cost, 1, squared is still a normal float32."""


def wkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor | None,
    costs: Tensor,
    *,
    weight: float | Tensor,
    temperature: float,
    smoothing: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """The label's cross-entropy, weighted by the teacher, and the transport cost between the other classes.

    Formula: ``mean_i ( -t_y log s_y + lambda sum_jk q_jk c_jk )`` with s = softmax(s_i), t = softmax(t_i), the label y,
    and a plan q that moves s^, the softmax of s_i / T over the classes other than y, onto t^, that of t_i / T:
    ``sum_k q_jk = s^_j``, ``sum_j q_jk = t^_k``, of least ``sum_jk q_jk (c_jk + eta log q_jk)``. Sinkhorn's algorithm
    finds it: with ``K = exp(-c / eta)`` and ``u = 1 / (C - 1)``, iterate ``v = t^ / (K^T u)``, then
    ``u = s^ / (K v)``; ``q_jk = u_j K_jk v_k``. Gradients go through all its steps.

    Without targets the first term is left out, and the plan moves all classes: for images without a label, and for
    mixed labels. The paper has this as its variant without separation.

    The costs say how unlike two classes are; `disk_kd.losses.class_costs` makes them. The entropy spreads the plan, so
    that the loss is not zero at student = teacher.

    The settings of the release are, for ImageNet, lambda 30 (ResNet-34 to ResNet-18) and 25 (ResNet-50 to MobileNet)
    with T 2, and for CIFAR-100 lambda 800, T 8 (resnet32x4 to resnet8x4) and lambda 200, T 6 (wrn_40_2 to
    ShuffleNetV1), all with eta 0.05 and 10 iterations. Lambda falls to 0 along half a cosine, for ImageNet over all of
    its epochs, for CIFAR-100 over the last 90 of 240. The plain cross-entropy with the label, of weight 1, is not part
    of it.

    Args:
        student_logits: (B, C), C at least 2 with targets. With C = 2 the second term is then zero.
        teacher_logits: (B, C); no gradient flows into them.
        targets: (B,) int64 class indices below C; None: without separation.
        costs: (C, C), from 0 to 1; no gradient flows into them.
        weight: lambda, the weight of the transport; a number or a 0-dim tensor.
        temperature: T > 0, for the transport only.
        smoothing: eta, the weight of the plan's entropy, 0.025 or more.
        iterations: number of Sinkhorn iterations, 1 or more.

    Returns:
        A scalar: the mean over the batch, without a factor T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ; the temperature, the smoothing or the iterations are out of range.

    Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS
    2024, the loss WKD-L.
    Departs: nothing in the formula. The release adds 1e-8 to costs and divisors. One matrix of costs serves all images:
    the label's probability is set to zero, where the release copies a matrix without the label for each image.

    Example:
        >>> s, t, y = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10), torch.arange(4)
        >>> costs = 1 - torch.eye(10)
        >>> loss = wkd_loss(s, t, y, costs, weight=30.0, temperature=2.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits, targets)
    check_temperature(temperature, usual=2.0)
    check_sinkhorn(smoothing, iterations)
    classes = student_logits.shape[1]
    if costs.shape != (classes, classes):
        raise ConfigError(f"costs must have shape {(classes, classes)}, got {tuple(costs.shape)}; give one a pair")
    if targets is None:
        s_BC = log_probabilities(student_logits, temperature).exp()
        t_BC = teacher_log_probabilities(teacher_logits, temperature).exp()
        return weight * _transport_cost(s_BC, t_BC, torch.full_like(t_BC, 1 / classes), costs, smoothing, iterations)
    if classes < 2:
        raise ConfigError(f"a label needs other classes, got {classes} class; give at least 2 classes")
    label_B1 = targets[:, None]
    log_s_B1 = log_probabilities(student_logits, 1.0).gather(1, label_B1)
    log_t_B1 = teacher_log_probabilities(teacher_logits, 1.0).gather(1, label_B1)
    s_BC, t_BC = (_others(x_BC, label_B1, temperature) for x_BC in (student_logits, teacher_logits.detach()))
    start_BC = torch.full_like(t_BC, 1 / (classes - 1)).scatter(1, label_B1, 0.0)
    label = -(log_t_B1.exp() * log_s_B1).mean()
    return label + weight * _transport_cost(s_BC, t_BC, start_BC, costs, smoothing, iterations)


def check_sinkhorn(smoothing: float, iterations: int) -> None:
    """Raises ConfigError unless the algorithm's numbers stay finite, and it does a step."""
    if not LEAST_SMOOTHING <= smoothing < math.inf:
        raise ConfigError(f"smoothing must be finite and at least {LEAST_SMOOTHING}, got {smoothing}; try 0.05")
    if iterations < 1:
        raise ConfigError(f"iterations must be at least 1, got {iterations}; try 10")


def _others(logits_BC: Tensor, label_B1: Tensor, temperature: float) -> Tensor:
    """Probabilities of the classes other than the label among themselves; 0 for the label."""
    scaled_BC = at_least_float32(logits_BC).clamp(min=LOWEST) / temperature
    return scaled_BC.scatter(1, label_B1, -math.inf).softmax(1)


def _transport_cost(
    s_BC: Tensor, t_BC: Tensor, start_BC: Tensor, costs_CC: Tensor, smoothing: float, iterations: int
) -> Tensor:
    """The mean cost of the plans. The label has u = 0 and v = 0, and so takes no part in the sums."""
    with torch.autocast(s_BC.device.type, enabled=False):  # half precision would round small probabilities away
        costs_CC = costs_CC.detach().to(s_BC)
        kernel_CC = torch.exp(-costs_CC / smoothing)
        u_BC = start_BC
        for _ in range(iterations):
            v_BC = t_BC / (u_BC @ kernel_CC)
            u_BC = s_BC / (v_BC @ kernel_CC.T)
        return (u_BC * (v_BC @ (kernel_CC * costs_CC).T)).sum(1).mean()
