"""Descent from many starts at once, and its different ends. Shape letters: S starts, P parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

Objective = Callable[[Tensor], Tensor]
"""The loss of one student: maps its parameters (P,) to a scalar."""

CHUNK = 128
"""Number of starts in one call, which limits the memory."""


def minimise(
    objective: Objective, starts_SP: Tensor, *, steps: int = 400, longest: float = 0.25, tolerance: float = 1e-7
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow each start downhill with BFGS. Steps are short, so that a start stays in its valley.

    A step is at most `longest` long. It is taken only if the loss decreases as much as the slope predicts; otherwise a
    shorter one is tried. A start is finished when its gradient is below `tolerance` or no step lowers the loss.

    Returns:
        The ends (S, P), their losses (S,) and the norms of their gradients (S,).
    """
    evaluate = vmap(grad_and_value(objective), chunk_size=CHUNK)
    x_SP = starts_SP.clone()
    slope_SP, loss_S = evaluate(x_SP)
    inverse_SPP = torch.eye(x_SP.shape[1], dtype=x_SP.dtype).repeat(len(x_SP), 1, 1)
    radius_S = torch.full_like(loss_S, longest)
    for _ in range(steps):
        moving = ((slope_SP.norm(dim=1) > tolerance) & (radius_S > 1e-9)).nonzero()[:, 0]
        if not len(moving):
            break
        x, loss, slope, inverse = x_SP[moving], loss_S[moving], slope_SP[moving], inverse_SPP[moving]
        step = -(inverse @ slope[:, :, None])[:, :, 0]
        step = step * (radius_S[moving] / step.norm(dim=1)).clamp(max=1)[:, None]
        new_slope, new_loss = evaluate(x + step)
        better = new_loss <= loss + 1e-4 * (slope * step).sum(1)
        inverse_SPP[moving] = _bfgs(inverse, step, new_slope - slope)
        length = step.norm(dim=1)
        radius_S[moving] = torch.where(better, (2 * radius_S[moving]).clamp(max=longest), length / 4)
        x_SP[moving] = torch.where(better[:, None], x + step, x)
        slope_SP[moving] = torch.where(better[:, None], new_slope, slope)
        loss_S[moving] = torch.where(better, new_loss, loss)
    return x_SP, loss_S, slope_SP.norm(dim=1)


def _bfgs(inverse_SPP: Tensor, step_SP: Tensor, change_SP: Tensor) -> Tensor:
    """The inverse Hessians after one more pair of step and slope change; unchanged where the curvature is negative."""
    curvature_S = (step_SP * change_SP).sum(1)
    bends_up_S = curvature_S > 1e-8 * step_SP.norm(dim=1) * change_SP.norm(dim=1)
    rho_S11 = (1 / torch.where(bends_up_S, curvature_S, 1.0))[:, None, None]
    away_SPP = torch.eye(step_SP.shape[1], dtype=step_SP.dtype) - rho_S11 * step_SP[:, :, None] * change_SP[:, None]
    updated_SPP = away_SPP @ inverse_SPP @ away_SPP.mT + rho_S11 * step_SP[:, :, None] * step_SP[:, None]
    return torch.where(bends_up_S[:, None, None], updated_SPP, inverse_SPP)


def is_minimum(objective: Objective, x_SP: Tensor, *, least: float = 1e-3, width: float = 1e-4) -> Tensor:
    """(S,) whether the curvature of the loss is at least `least` in every direction. On a plateau it is not."""
    slope = vmap(grad_and_value(objective), chunk_size=CHUNK)
    sides = width * torch.eye(x_SP.shape[1], dtype=x_SP.dtype)
    columns = [(slope(x_SP + side)[0] - slope(x_SP - side)[0]) / (2 * width) for side in sides]
    hessian_SPP = torch.stack(columns, dim=2)
    return torch.linalg.eigvalsh((hessian_SPP + hessian_SPP.mT) / 2)[:, 0] > least


def equal_ends(x_SP: Tensor, loss_S: Tensor, *, apart: float = 0.05) -> list[Tensor]:
    """The indices of the starts that share an end, lowest end first."""
    groups: list[list[int]] = []
    for start in loss_S.argsort().tolist():
        for group in groups:
            if (x_SP[start] - x_SP[group[0]]).norm() < apart:
                group.append(start)
                break
        else:
            groups.append([start])
    return [torch.tensor(group) for group in groups]
