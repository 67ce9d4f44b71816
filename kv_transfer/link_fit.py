"""Latency and bandwidth of a link out of timed reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkFit:
    """``seconds = fixed_s + bytes / fitted_bytes_per_s``, beside the typical times that were measured."""

    latency_s: float
    """Of the smallest reads."""
    bytes_per_s: float
    """Size of the largest reads over their time."""
    fixed_s: float
    """Fitted cost of a read whatever its size; never below 0."""
    fitted_bytes_per_s: float
    """Fitted slope, as bytes per second."""
    times_s: tuple[tuple[int, float], ...]
    """Size in bytes and typical seconds, smallest first."""

    def seconds(self, size_bytes: int) -> float:
        """Predicted time of one read."""
        return self.fixed_s + size_bytes / self.fitted_bytes_per_s


def typical_s(values: Sequence[float]) -> float:
    """Lower quartile of timings. What else the machine does only ever adds time, often to more than half of them.

    Example:
        >>> typical_s([5.0, 1.0, 2.0, 9.0, 3.0])
        2.0
    """
    return sorted(values)[(len(values) - 1) // 4]


def fit(reads: Sequence[tuple[int, float]]) -> LinkFit:
    """Fit ``(bytes, seconds)`` samples.

    The lower quartile per size, then least squares on relative errors (weights ``1 / seconds ** 2``): with absolute
    errors the largest size alone would decide, and the fixed cost would be noise.

    Raises:
        ValueError: no sample, or one that is not positive.

    Example:
        >>> line = fit([(size, 1e-5 + size / 1e9) for size in (4096, 65536, 1 << 20, 1 << 28)])
        >>> round(line.fixed_s * 1e6, 3), round(line.fitted_bytes_per_s / 1e9, 3)
        (10.0, 1.0)
    """
    if not reads or any(size <= 0 or seconds <= 0 for size, seconds in reads):
        raise ValueError("expected timed reads with sizes and seconds above 0")
    by_size: dict[int, list[float]] = {}
    for size, seconds in reads:
        by_size.setdefault(size, []).append(seconds)
    times = tuple((size, typical_s(values)) for size, values in sorted(by_size.items()))
    weights = [1 / seconds**2 for _, seconds in times]
    total = sum(weights)
    mean_size = sum(w * size for w, (size, _) in zip(weights, times, strict=True)) / total
    mean_s = sum(w * seconds for w, (_, seconds) in zip(weights, times, strict=True)) / total
    spread = sum(w * (size - mean_size) ** 2 for w, (size, _) in zip(weights, times, strict=True))
    product = sum(w * (size - mean_size) * (s - mean_s) for w, (size, s) in zip(weights, times, strict=True))
    largest, largest_s = times[-1]
    if spread <= 0 or product <= 0:
        # One size, or larger reads took no longer: the line has no slope to speak of.
        fixed_s, fitted = 0.0, largest / largest_s
    else:
        fixed_s, fitted = mean_s - product / spread * mean_size, spread / product
        if fixed_s < 0:
            # Through the origin, with the same weights.
            fixed_s = 0.0
            fitted = sum(w * size * size for w, (size, _) in zip(weights, times, strict=True)) / sum(
                w * size * s for w, (size, s) in zip(weights, times, strict=True)
            )
    return LinkFit(times[0][1], largest / largest_s, fixed_s, fitted, times)
