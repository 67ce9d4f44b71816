"""Fits a workload block to a trace, and says how good the fit is.

Lengths: a lognormal if it is close enough, else a mixture of two or three, else the empirical quantiles.
Gaps between arrivals: Poisson, Gamma or Weibull by likelihood, after the slow change of the rate is removed.
Goodness is measured on draws from the fitted block itself, so it judges the generator too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.arrivals import Gaps, Kind
from planner.simulator.lengths import Lengths, LogNormal, Mixture, Quantiles, sample
from planner.simulator.workload import Floats, Ints, Workload

CLOSE_KS = 0.03
"""Largest gap between two distribution functions that passes for the same."""


@dataclass(frozen=True, slots=True)
class Goodness:
    """How near draws from a fit come to the data.

    ``ks`` is the largest gap between the distribution functions; the rest are relative errors.
    """

    name: str
    kind: str
    ks: float
    mean_error: float
    p50_error: float
    p95_error: float
    p99_error: float


def ks_distance(first: Floats | Ints, second: Floats | Ints) -> float:
    """Largest gap between two empirical distribution functions.

    Example:
        >>> ks_distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6]))
        0.5
    """
    one, other = np.sort(first), np.sort(second)
    grid = np.concatenate([one, other])
    shares = [np.searchsorted(each, grid, side="right") / len(each) for each in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def fit_lengths(name: str, tokens: Ints, rng: np.random.Generator) -> tuple[dict[str, Any], Goodness]:
    """The simplest distribution that is close, as a block, with its goodness."""
    top = int(tokens.max())
    if top == int(tokens.min()):
        return {"kind": "fixed", "tokens": top}, Goodness(name, "fixed", 0.0, 0.0, 0.0, 0.0, 0.0)
    found: list[tuple[dict[str, Any], Goodness]] = []
    if tokens.min() >= 1:
        logs = np.log(tokens.astype(np.float64))
        for count in (1, 2, 3):
            block = _lognormals(logs, count, int(tokens.min()), top)
            found.append((block, judge(name, block["kind"], build_lengths(block), tokens, rng)))
            if found[-1][1].ks <= CLOSE_KS and abs(found[-1][1].mean_error) < 0.05:
                return found[-1]
    steps = 1000 if len(tokens) >= 10_000 else 100
    values = np.quantile(tokens, np.linspace(0.0, 1.0, steps + 1))
    block = {"kind": "quantiles", "values": [float(round(value, 1)) for value in values]}
    found.append((block, judge(name, "quantiles", build_lengths(block), tokens, rng)))
    return min(found, key=lambda each: each[1].ks)


def build_lengths(block: dict[str, Any]) -> Lengths:
    """The distribution that a fitted block describes."""
    if block["kind"] == "quantiles":
        return Quantiles(tuple(block["values"]))
    if block["kind"] == "lognormal":
        return _lognormal(block)
    return Mixture(tuple((part["weight"], _lognormal(part)) for part in block["parts"]))


def judge(name: str, kind: str, lengths: Lengths, tokens: Ints, rng: np.random.Generator) -> Goodness:
    """Compare draws with data."""
    drawn = sample(lengths, max(50_000, len(tokens)), rng)
    errors = [float(drawn.mean() / tokens.mean() - 1)]
    for share in (0.5, 0.95, 0.99):
        truth = float(np.quantile(tokens, share))
        errors.append(float(np.quantile(drawn, share) / truth - 1) if truth else 0.0)
    return Goodness(name, kind, ks_distance(drawn, tokens), *errors)


def fit_gaps(arrival_s: Floats) -> tuple[Gaps, dict[Kind, float]]:
    """The family of gaps with the highest likelihood, and the log-likelihood per gap of each.

    The rate is removed first: each gap is measured in mean gaps of its neighbourhood of some hundred.
    """
    gaps = np.diff(arrival_s)
    if len(gaps) < 20 or (gaps <= 0).mean() > 0.05:
        # Stamps rounded to ticks say nothing of the gaps within one.
        return Gaps(), {"poisson": 0.0}
    width = min(len(gaps), 101)
    local = np.convolve(gaps, np.ones(width), "same") / np.convolve(np.ones(len(gaps)), np.ones(width), "same")
    own = np.maximum(gaps / np.maximum(local, 1e-12), 1e-6)
    own /= own.mean()
    log_mean = float(np.log(own).mean())
    gamma_shape = _gamma_shape(-log_mean)
    weibull_shape = _weibull_shape(own)
    weibull_scale = 1.0 / math.gamma(1.0 + 1.0 / weibull_shape)
    scores: dict[Kind, float] = {
        "poisson": -1.0,
        "gamma": gamma_shape * math.log(gamma_shape)
        - math.lgamma(gamma_shape)
        + (gamma_shape - 1) * log_mean
        - gamma_shape,
        "weibull": math.log(weibull_shape / weibull_scale)
        + (weibull_shape - 1) * (log_mean - math.log(weibull_scale))
        - float(((own / weibull_scale) ** weibull_shape).mean()),
    }
    # A shape is one more parameter: it must earn two units of likelihood over all gaps.
    best = max(scores, key=lambda kind: scores[kind] - (kind != "poisson") * 2.0 / len(own))
    return Gaps(best, round({"poisson": 1.0, "gamma": gamma_shape, "weibull": weibull_shape}[best], 4)), scores


def correlation(first: Ints, second: Ints) -> float:
    """Correlation of the normal scores of two lengths, from their ranks; 0 where either does not vary."""
    if len(first) < 3 or first.min() == first.max() or second.min() == second.max():
        return 0.0
    ranks = [np.argsort(np.argsort(each, kind="stable"), kind="stable").astype(np.float64) for each in (first, second)]
    spearman = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    return max(-0.99, min(0.99, round(2.0 * math.sin(math.pi * spearman / 6.0), 4)))


def fit(workload: Workload, *, phases: int = 1, seed: int = 0) -> tuple[dict[str, Any], list[Goodness]]:
    """The workload block of a trace, in ``phases`` stretches of equal length, and the goodness of every part.

    Raises:
        ConfigError: a phase has fewer than 50 requests.
    """
    rng = np.random.default_rng(seed)
    duration_s = max(workload.duration_s, 1e-3) * (1 + 1e-9)
    blocks, report = [], []
    for index in range(phases):
        start_s, end_s = duration_s * index / phases, duration_s * (index + 1) / phases
        part = workload.between(start_s, end_s)
        if len(part) < 50:
            raise ConfigError(f"trace fit: phase {index + 1} has {len(part)} requests; 50 are needed, use fewer phases")
        block, goodness = _fit_phase(part, end_s - start_s, f"phase {index + 1} " if phases > 1 else "", rng)
        blocks.append(block)
        report.extend(goodness)
    return {"workload": {"seed": seed, "phases": blocks}}, report


def _fit_phase(
    part: Workload, duration_s: float, prefix: str, rng: np.random.Generator
) -> tuple[dict[str, Any], list[Goodness]]:
    gaps, _ = fit_gaps(part.arrival_s)
    arrivals: dict[str, Any] = {"rate_per_s": round(len(part) / duration_s, 6)}
    if gaps.kind != "poisson":
        arrivals |= {"gaps": gaps.kind, "shape": gaps.shape}
    counts, edges = np.histogram(part.arrival_s, bins=max(1, min(48, len(part) // 200)), range=(0.0, duration_s))
    if len(counts) > 1 and counts.std() > 2.0 * math.sqrt(counts.mean()) * max(1.0, gaps.cv):
        rates = counts / (edges[1] - edges[0])
        middles = (edges[1:] + edges[:-1]) / 2
        arrivals["rate_per_s"] = 1.0
        arrivals |= {
            "times_s": [round(float(each), 3) for each in middles],
            "rates": [round(each, 5) for each in rates],
        }
        arrivals["rates"] = [float(each) for each in arrivals["rates"]]
    block: dict[str, Any] = {"duration_s": round(duration_s, 3), "arrivals": arrivals}
    report: list[Goodness] = []
    for name in ("isl_tokens", "reasoning_tokens", "answer_tokens"):
        tokens: Ints = getattr(part, name)
        if name == "reasoning_tokens" and not tokens.any():
            continue
        block[name], goodness = fit_lengths(prefix + name, tokens, rng)
        report.append(goodness)
    if "reasoning_tokens" in block:
        block["correlation"] = correlation(part.reasoning_tokens, part.answer_tokens)
    cached = int(part.cached_tokens.sum())
    if len(part.units):
        # What a cache that never evicts would hold: units that came before, an upper bound for any real one.
        cached = (len(part.units) - len(np.unique(part.units))) * part.unit_tokens
    if cached:
        block["cached_share"] = round(float(cached / part.isl_tokens.sum()), 4)
    return block, report


def _lognormal(block: dict[str, Any]) -> LogNormal:
    return LogNormal(block["median_tokens"], block["sigma"], block["min_tokens"], block["max_tokens"])


def _lognormals(logs: Floats, count: int, low: int, high: int) -> dict[str, Any]:
    """Lognormals by expectation-maximisation on the logarithms, begun at even quantiles."""
    limits = {"min_tokens": low, "max_tokens": high}
    if count == 1:
        return {
            "kind": "lognormal",
            "median_tokens": round(math.exp(logs.mean()), 2),
            "sigma": round(float(logs.std()), 4),
            **limits,
        }
    data = logs if len(logs) <= 20_000 else logs[:: len(logs) // 20_000]
    means = np.quantile(data, (np.arange(count) + 0.5) / count)
    sigmas, weights = np.full(count, data.std() / count + 0.05), np.full(count, 1.0 / count)
    for _ in range(200):
        density = np.exp(-0.5 * ((data[:, None] - means) / sigmas) ** 2) / sigmas * weights + 1e-300
        share = density / density.sum(axis=1, keepdims=True)
        total = share.sum(axis=0)
        before = means
        means = (share * data[:, None]).sum(axis=0) / total
        sigmas = np.sqrt((share * (data[:, None] - means) ** 2).sum(axis=0) / total) + 0.01
        weights = total / len(data)
        if np.abs(means - before).max() < 1e-5:
            break
    parts = [
        {"weight": round(float(w), 4), "median_tokens": round(math.exp(m), 2), "sigma": round(float(s), 4), **limits}
        for w, m, s in zip(weights, means, sigmas, strict=True)
    ]
    return {"kind": "mixture", "parts": parts}


def _gamma_shape(spread: float) -> float:
    """Maximum-likelihood shape from ``log(mean) - mean(log)``, good to 1.5 % (Minka 2002)."""
    spread = max(spread, 1e-9)
    return (3.0 - spread + math.sqrt((spread - 3.0) ** 2 + 24.0 * spread)) / (12.0 * spread)


def _weibull_shape(values: Floats) -> float:
    logs = np.log(values)
    shape = 1.0
    for _ in range(100):
        powers = values**shape
        total = powers.sum()
        first = (powers * logs).sum() / total
        second = (powers * logs * logs).sum() / total
        value = first - 1.0 / shape - logs.mean()
        step = value / (second - first * first + 1.0 / shape**2)
        shape = max(shape / 2, shape - step)
        if abs(step) < 1e-9 * shape:
            break
    return float(shape)
