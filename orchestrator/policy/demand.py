"""What the pools will be asked for: requests in flight carried on, and those still to come. Pure.

KV is forecast from the survival curves: each request in flight is alive at a later time with some probability and has
grown by then; those to come arrive at the present rate of their class. Prefill is forecast by letting the prompts of
the last minutes queue again before different numbers of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.policy.capacity import WorkerCapacity
from orchestrator.policy.forecast_band import ForecastBand
from orchestrator.policy.length_forecast import LengthForecaster, LengthSettings
from orchestrator.policy.prefill_need import prefill_workers_needed
from orchestrator.policy.scaling import Arrival, FinishedRequest, InFlight
from orchestrator.policy.survival import Curves, Floats, Ints

BAND_S = 60.0
"""How far ahead the published forecast with its band looks."""
P95_DEVIATIONS = 1.645
ORDER_MARGIN_S = 20.0
RECENT_S, LONG_S = 300.0, 600.0
_AGES = 16


def horizons_s(start_s: float) -> tuple[float, ...]:
    """Times ahead to forecast for: now, on the way, and when a worker ordered at the next look would serve."""
    last_s = start_s + ORDER_MARGIN_S
    return (0.0, last_s / 3, 2 * last_s / 3, last_s)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to come; with the fleet's state, all that a decision rests on.

    Token counts are of prompt and output together. ``kv_high_tokens`` belongs to ``horizons_s`` and is what demand
    stays under with 95 %, at the speed of a well-filled worker. ``band_*`` are what is expected `BAND_S` ahead at the
    present speed, and the 90 % band about it. ``prefill_workers`` would have kept first tokens in time, by the last
    two minutes and by the last ten.
    """

    now_s: float
    kv_tokens: float
    horizons_s: tuple[float, ...]
    kv_high_tokens: tuple[float, ...]
    band_low_tokens: float
    band_mean_tokens: float
    band_high_tokens: float
    prefill_workers_recent: float
    prefill_workers_long: float
    arrivals_per_s: float
    prompt_tokens_per_s: float
    in_flight_requests: int
    queued_requests: int
    worker_kv_tokens: float
    request_tokens_per_s: float
    pace: float


@dataclass(slots=True)
class _ClassRates:
    """Decaying arrival counts of each class."""

    half_life_s: float
    seconds: float = 0.0
    requests: Floats = field(default_factory=lambda: np.zeros(0))
    prompt_tokens: Floats = field(default_factory=lambda: np.zeros(0))

    def advance(self, seconds: float, classes: int) -> None:
        keep = 0.5 ** (seconds / self.half_life_s)
        more = np.zeros(classes - len(self.requests))
        self.seconds = self.seconds * keep + seconds
        self.requests = np.concatenate((self.requests * keep, more))
        self.prompt_tokens = np.concatenate((self.prompt_tokens * keep, more))


class DemandForecaster:
    """Learns from what a policy sees at each look, and says what is to come.

    Args:
        capacity: What one worker can take.
        ttft_s: Objective for the first token.
        horizons_s: Times ahead for which KV is forecast, rising, the first 0.
        lengths: Constants of the length forecast.
        rate_memory_s: Half-life of arrival rates.
    """

    def __init__(
        self,
        capacity: WorkerCapacity,
        *,
        ttft_s: float,
        horizons_s: Sequence[float],
        lengths: LengthSettings | None = None,
        rate_memory_s: float = 60.0,
    ) -> None:
        self.lengths = LengthForecaster(lengths)
        self.band = ForecastBand()
        self._capacity = capacity
        self._ttft_s = ttft_s
        self._horizons_s = tuple(horizons_s)
        self._rates = _ClassRates(rate_memory_s)
        self._made: dict[int, tuple[int, float, bool]] = {}
        self._prompts: deque[tuple[float, float, float]] = deque()
        self._now_s = 0.0
        self._speed = 0.0
        self._progress: list[float] = []

    def look(
        self,
        now_s: float,
        in_flight: Iterable[InFlight],
        arrived: Sequence[Arrival],
        finished: Sequence[FinishedRequest],
        decode_workers: int,
    ) -> Demand:
        """Take in one look at the fleet, of which ``decode_workers`` hold requests, and forecast from it."""
        seconds = max(1e-9, now_s - self._now_s)
        flights = list(in_flight)
        self.lengths.advance(now_s)
        classes = np.array([self.lengths.class_of(each.tenant) for each in flights], np.int64)
        made = np.array([each.generated_tokens for each in flights], np.float64)
        isl = np.array([each.isl_tokens for each in flights], np.float64)
        self._learn_lengths(flights, classes, made, finished, seconds)
        self._learn_speed(flights, seconds, decode_workers)
        self._learn_arrivals(now_s, arrived, seconds)
        self._now_s = now_s
        context = isl + made
        kv_tokens = float(context.sum())
        curves = self.lengths.curves()
        mean_context = kv_tokens / len(flights) if flights else 1.0
        planned_speed = self._capacity.tokens_per_s(mean_context)
        speed = self._speed or planned_speed
        mean, _ = self._kv(curves, classes, made, context, speed, (BAND_S,))
        ratio_low, ratio_high = self.band.look(now_s, kv_tokens, float(mean[0]), BAND_S)
        planned, deviation = self._kv(curves, classes, made, context, planned_speed, self._horizons_s)
        high = [m + P95_DEVIATIONS * d for m, d in zip(planned, deviation, strict=True)]
        recent, long = self._prefill_need(now_s)
        return Demand(
            now_s=now_s,
            kv_tokens=kv_tokens,
            horizons_s=self._horizons_s,
            kv_high_tokens=tuple(round(value, 1) for value in high),
            band_low_tokens=float(mean[0]) * ratio_low,
            band_mean_tokens=float(mean[0]),
            band_high_tokens=float(mean[0]) * ratio_high,
            prefill_workers_recent=recent,
            prefill_workers_long=long,
            arrivals_per_s=float(self._rates.requests.sum() / max(1e-9, self._rates.seconds)),
            prompt_tokens_per_s=float(self._rates.prompt_tokens.sum() / max(1e-9, self._rates.seconds)),
            in_flight_requests=len(flights),
            queued_requests=sum(each.phase == "queued" for each in flights),
            worker_kv_tokens=self._capacity.kv_tokens(mean_context),
            request_tokens_per_s=speed,
            pace=float(self.lengths.pace()[-1]),
        )

    # --- learning -------------------------------------------------------------------------------------------

    def _learn_lengths(
        self,
        flights: list[InFlight],
        classes: Ints,
        made: Floats,
        finished: Sequence[FinishedRequest],
        seconds: float,
    ) -> None:
        before, self._made = self._made, {}
        start = np.zeros(len(flights))
        self._progress = []
        for index, each in enumerate(flights):
            known = before.pop(each.request, None)
            decodes = each.phase == "decoding"
            if known is not None:
                start[index] = known[1]
                if decodes and known[2]:
                    self._progress.append(each.generated_tokens - known[1])
            self._made[each.request] = (int(classes[index]), float(each.generated_tokens), decodes)
        self.lengths.observe(classes, np.minimum(start, made), made, np.zeros(len(flights), np.bool_))
        ended = [
            (each, before.pop(each.request, (self.lengths.class_of(each.tenant), 0.0, False))) for each in finished
        ]
        if ended:
            osl = np.array([each.reasoning_tokens + each.answer_tokens for each, _ in ended], np.float64)
            self.lengths.observe(
                np.array([known[0] for _, known in ended], np.int64),
                np.minimum(np.array([known[1] for _, known in ended]), osl),
                osl,
                np.ones(len(ended), np.bool_),
            )

    def _learn_speed(self, flights: list[InFlight], seconds: float, decode_workers: int) -> None:
        """Speed of a request, by the median: those that wait for room must not count as slow."""
        decoding = [each for each in flights if each.phase == "decoding"]
        if len(self._progress) < 4 or not decode_workers:
            return
        speed = float(np.median(self._progress)) / seconds
        if speed <= 0:
            return
        self._speed = speed if not self._speed else self._speed + 0.3 * (speed - self._speed)
        held = sum(each.isl_tokens + each.generated_tokens for each in decoding)
        self._capacity.observe_step(len(decoding) // decode_workers, held // decode_workers, 1.0 / speed)

    def _learn_arrivals(self, now_s: float, arrived: Sequence[Arrival], seconds: float) -> None:
        keys = np.array([self.lengths.class_of(each.tenant) for each in arrived], np.int64)
        self._rates.advance(seconds, len(self.lengths.classes))
        if len(arrived):
            np.add.at(self._rates.requests, keys, 1.0)
            np.add.at(self._rates.prompt_tokens, keys, np.array([each.isl_tokens for each in arrived], np.float64))
        for each in arrived:
            self._prompts.append((each.time_s, self._capacity.prefill_s(each.isl_tokens), 1.0))
        while self._prompts and self._prompts[0][0] < now_s - LONG_S:
            self._prompts.popleft()

    # --- forecasting ----------------------------------------------------------------------------------------

    def _kv(
        self, curves: Curves, classes: Ints, made: Floats, context: Floats, speed: float, horizons_s: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of KV tokens at each horizon."""
        means, deviations = [], []
        every = np.arange(len(self.lengths.classes))
        rate = self._rates.requests / max(1e-9, self._rates.seconds)
        isl = self._rates.prompt_tokens / np.maximum(self._rates.requests, 1e-9)
        gone = curves.hazard(classes, made)
        for horizon_s in horizons_s:
            more = speed * horizon_s
            alive = np.exp(gone - curves.hazard(classes, made + more))
            grown = context + more
            mean, variance = float(alive @ grown), float((alive * (1 - alive)) @ (grown * grown))
            # Requests to come, by age at the horizon: closer together near 0, where most of them end.
            edges = horizon_s * np.linspace(0.0, 1.0, _AGES + 1) ** 2
            ages, widths = (edges[1:] + edges[:-1]) / 2 * speed, np.diff(edges)
            for age, width in zip(ages, widths, strict=True):
                if width <= 0:
                    continue
                alive = rate * width * np.exp(-curves.hazard(every, np.full(len(every), age)))
                mean += float(alive @ (isl + age))
                variance += float(alive @ (isl + age) ** 2)
            means.append(mean)
            deviations.append(variance**0.5)
        return means, deviations

    def _prefill_need(self, now_s: float) -> tuple[float, float]:
        if not self._prompts:
            return 0.0, 0.0
        times = np.array([each[0] for each in self._prompts])
        work = np.array([each[1] for each in self._prompts])
        recent = times > now_s - RECENT_S
        return (
            prefill_workers_needed(times[recent], work[recent], now_s, self._ttft_s),
            prefill_workers_needed(times, work, now_s, self._ttft_s),
        )
