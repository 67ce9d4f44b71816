"""Small robust least squares: Levenberg-Marquardt on bounded parameters, with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def fit(
    residuals: Callable[[Vector], Vector],
    start: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    *,
    soft_limit: float = 0.08,
    steps: int = 60,
) -> Vector:
    """Parameters that minimise a soft-L1 sum of ``residuals``, within bounds.

    Residuals far above ``soft_limit`` count in proportion, not squared, so a few outliers do not decide.

    Args:
        residuals: Maps parameters to residuals.
        start: First guess, inside the bounds.
        lower: Lower bounds.
        upper: Upper bounds.
        soft_limit: Where a residual starts to count as an outlier.
        steps: Most steps.
    Returns:
        The best parameters found.
    Example:
        >>> x = np.arange(5.0)
        >>> fit(lambda p: p[0] * x + p[1] - (3 * x + 1), [0, 0], [-9, -9], [9, 9]).round(3).tolist()
        [3.0, 1.0]
    """
    low, high = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    point = np.clip(np.asarray(start, dtype=float), low, high)
    width = np.where(high > low, high - low, 1.0)

    values = residuals(point)
    best, damping = _soft_l1(values, soft_limit), 1e-2
    for _ in range(steps):
        jacobian = _jacobian(residuals, point, values, width, high)
        weight = 1.0 / np.sqrt(1.0 + (values / soft_limit) ** 2)
        gradient = jacobian.T @ (weight * values)
        normal = jacobian.T @ (jacobian * weight[:, None])
        # Parameters that sit on a bound and are pushed outward stay there.
        free = ~(((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0)))
        if not free.any():
            break
        improved = False
        for _ in range(12):
            matrix = normal[np.ix_(free, free)] + damping * np.diag(np.diag(normal)[free] + 1e-12)
            move = np.zeros_like(point)
            move[free] = -np.linalg.solve(matrix, gradient[free])
            candidate = np.clip(point + move, low, high)
            new_values = residuals(candidate)
            new_cost = _soft_l1(new_values, soft_limit)
            if new_cost < best:
                improved = best - new_cost > 1e-9 * best
                point, values, best, damping = candidate, new_values, new_cost, damping / 5
                break
            damping *= 4
        if not improved:
            break
    return point


def _soft_l1(values: Vector, soft_limit: float) -> float:
    scaled = 1.0 + (values / soft_limit) ** 2
    return float(np.sum(2.0 * (np.sqrt(scaled) - 1.0)) * soft_limit**2)


def _jacobian(
    residuals: Callable[[Vector], Vector], point: Vector, values: Vector, width: Vector, high: Vector
) -> NDArray[np.float64]:
    """Finite differences at ``point``, backwards at an upper bound. Shape ``(residuals, parameters)``."""
    jacobian = np.empty((values.size, point.size))
    for i in range(point.size):
        delta = 1e-5 * width[i] * (1.0 if point[i] + 1e-5 * width[i] <= high[i] else -1.0)
        moved = point.copy()
        moved[i] += delta
        jacobian[:, i] = (residuals(moved) - values) / delta
    return jacobian
