"""What the pools will be asked for: requests in flight carried on, and those still to come. Pure.

KV is forecast from the survival curves: each request in flight is alive at a later time with some probability and has
grown by then; those to come arrive at the present rate of their class. Prefill is forecast by letting the prompts of
the last minutes queue again before different numbers of workers.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.policy.forecast_band import ForecastBand
from orchestrator.policy.length_forecast import LengthForecaster, LengthSettings
from orchestrator.policy.prefill_need import PromptWindow
from orchestrator.policy.scaling_policy import Arrival, FinishedRequest, InFlight
from orchestrator.policy.survival import Curves, Floats, Ints
from orchestrator.policy.worker_capacity import WorkerCapacity

BAND_S = 60.0
"""How far ahead the published forecast with its band looks."""
P95_DEVIATIONS = 1.645
ORDER_MARGIN_S = 20.0
RECENT_S, LONG_S = 300.0, 600.0
REACH_S = 5.0
"""Prompts that the prefill pool takes longer than this to come to hold no KV in decode yet."""
_AGES = 16


def horizons_s(start_s: float) -> tuple[float, ...]:
    """Times ahead to forecast for: now, on the way, and when a worker ordered at the next tick would serve."""
    last_s = start_s + ORDER_MARGIN_S
    return (0.0, last_s / 3, 2 * last_s / 3, last_s)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to come; with the fleet's state, all that a decision rests on.

    Token counts are of prompt and output together. ``kv_high_tokens`` belongs to ``horizons_s`` and is what demand
    stays under with 95 %, at the speed of a well-filled worker. ``band_*`` are what is expected `BAND_S` ahead at the
    present speed, and the 90 % band about it. ``prefill_workers`` would have kept first tokens in time, by the last
    five minutes and by the last ten, decode workers helping with those past a second's wait.
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
    planned_tokens_per_s: float = 0.0
    """Tokens a second of one request on a well-filled worker; 0 where that is not known."""


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


_COLUMNS = operator.attrgetter("request", "tenant", "isl_tokens", "generated_tokens", "phase")


@dataclass(frozen=True, slots=True)
class _Flights:
    """Requests in flight at one tick, as columns in order of their numbers.

    ``preempted_s`` is how long a preempted request has been waiting to resume; below 0 for all others.
    """

    ids: Ints
    classes: Ints
    isl: Floats
    made: Floats
    decoding: npt.NDArray[np.bool_]
    preempted_s: Floats
    queued: int

    @classmethod
    def of(
        cls,
        in_flight: Iterable[InFlight],
        lengths: LengthForecaster,
        before: _Flights | None = None,
        seconds: float = 0.0,
    ) -> _Flights:
        columns = list(zip(*map(_COLUMNS, in_flight), strict=True)) or [()] * 5
        request, tenant, isl, made, phase = columns
        ids = np.array(request, np.int64)
        order = np.argsort(ids, kind="stable")
        ids, phases, generated = ids[order], np.array(phase, np.str_)[order], np.array(made, np.float64)[order]
        queued = phases == "queued"
        waited_s = before.of_known(ids, np.maximum(0.0, before.preempted_s), 0.0) + seconds if before else 0.0
        return cls(
            ids,
            lengths.classes_of(tenant)[order],
            np.array(isl, np.float64)[order],
            generated,
            phases == "decoding",
            np.where(queued & (generated > 0), waited_s, -1.0),
            int(queued.sum()),
        )

    def where(self, keep: npt.NDArray[np.bool_]) -> _Flights:
        """Some of the requests."""
        return _Flights(
            self.ids[keep],
            self.classes[keep],
            self.isl[keep],
            self.made[keep],
            self.decoding[keep],
            self.preempted_s[keep],
            self.queued,
        )

    def of_known(self, ids: Ints, column: npt.NDArray[Any], otherwise: float) -> Floats:
        """A column's values for these requests; ``otherwise`` for those that were not in flight then."""
        if not len(self.ids):
            return np.full(len(ids), otherwise)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, column[at], otherwise)


class DemandForecaster:
    """Learns from what a policy sees at each tick, and says what is to come.

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
        self._horizons_s = tuple(horizons_s)
        self._rates = _ClassRates(rate_memory_s)
        self._before = _Flights.of((), self.lengths)
        self._prompts = PromptWindow(ttft_s=ttft_s, keep_s=LONG_S)
        self._now_s = 0.0
        self._speed = 0.0

    def observe(
        self,
        now_s: float,
        in_flight: Iterable[InFlight],
        arrived: Sequence[Arrival],
        finished: Sequence[FinishedRequest],
        decode_workers: int,
        prefill_workers: int = 0,
    ) -> Demand:
        """Take in one tick's view of the fleet, of which ``decode_workers`` hold requests, and forecast from it.

        Where ``prefill_workers`` is given, a backlog of prompts asks for KV only as those workers read it: more decode
        workers would not shorten it.
        """
        seconds = max(1e-9, now_s - self._now_s)
        self.lengths.advance(now_s)
        flights = _Flights.of(in_flight, self.lengths, self._before, seconds)
        self._learn_lengths(flights, finished)
        self._learn_speed(flights, seconds, decode_workers)
        self._learn_arrivals(arrived, seconds)
        self._before = flights
        self._now_s = now_s
        kv_tokens = float((flights.isl + flights.made).sum())
        self._capacity.observe(int(kv_tokens), len(flights.ids), seconds)
        curves = self.lengths.curves()
        mean_context = kv_tokens / len(flights.ids) if len(flights.ids) else 1.0
        planned_speed = self._capacity.tokens_per_s(mean_context)
        speed = self._speed or planned_speed
        mean, _ = self._kv(curves, flights, speed, (BAND_S,))
        ratio_low, ratio_high = self.band.observe(now_s, kv_tokens, float(mean[0]), BAND_S)
        # A preempted request resumes where there is headroom. It counts as demand only after ten minutes: else a
        # shortage of minutes would be answered with workers that come when it is over.
        asking = flights.where((flights.preempted_s < 0) | (flights.preempted_s >= LONG_S))
        read_in_s = self._read_in_s(asking, prefill_workers)
        planned, deviation = self._kv(curves, asking, planned_speed, self._horizons_s, read_in_s)
        high = [m + P95_DEVIATIONS * d for m, d in zip(planned, deviation, strict=True)]
        return Demand(
            now_s=now_s,
            kv_tokens=kv_tokens,
            horizons_s=self._horizons_s,
            kv_high_tokens=tuple(round(value, 1) for value in high),
            band_low_tokens=float(mean[0]) * ratio_low,
            band_mean_tokens=float(mean[0]),
            band_high_tokens=float(mean[0]) * ratio_high,
            prefill_workers_recent=self._prompts.workers_needed(now_s, RECENT_S),
            prefill_workers_long=self._prompts.workers_needed(now_s, LONG_S),
            arrivals_per_s=float(self._rates.requests.sum() / max(1e-9, self._rates.seconds)),
            prompt_tokens_per_s=float(self._rates.prompt_tokens.sum() / max(1e-9, self._rates.seconds)),
            in_flight_requests=len(flights.ids),
            queued_requests=flights.queued,
            worker_kv_tokens=self._capacity.kv_tokens(mean_context),
            request_tokens_per_s=speed,
            pace=float(self.lengths.pace()[-1]),
            planned_tokens_per_s=planned_speed,
        )

    # --- learning -------------------------------------------------------------------------------------------

    def _learn_lengths(self, flights: _Flights, finished: Sequence[FinishedRequest]) -> None:
        start = self._before.of_known(flights.ids, self._before.made, 0.0)
        self.lengths.observe(
            flights.classes, np.minimum(start, flights.made), flights.made, np.zeros(len(start), np.bool_)
        )
        if finished:
            osl = np.array([each.reasoning_tokens + each.answer_tokens for each in finished], np.float64)
            ids = np.array([each.request for each in finished], np.int64)
            start = self._before.of_known(ids, self._before.made, 0.0)
            classes = self.lengths.classes_of([each.tenant for each in finished])
            self.lengths.observe(classes, np.minimum(start, osl), osl, np.ones(len(osl), np.bool_))

    def _learn_speed(self, flights: _Flights, seconds: float, decode_workers: int) -> None:
        """Speed of a request, by the median: those that wait for KV must not count as slow."""
        start = self._before.of_known(flights.ids, self._before.made, 0.0)
        decoded = self._before.of_known(flights.ids, self._before.decoding, 0.0) > 0
        progress = (flights.made - start)[decoded & flights.decoding]
        if len(progress) < 4 or not decode_workers:
            return
        speed = float(np.median(progress)) / seconds
        if speed <= 0:
            return
        self._speed = speed if not self._speed else self._speed + 0.3 * (speed - self._speed)
        held = int((flights.isl + flights.made)[flights.decoding].sum())
        requests = int(flights.decoding.sum())
        self._capacity.observe_step(requests // decode_workers, held // decode_workers, 1.0 / speed)

    def _learn_arrivals(self, arrived: Sequence[Arrival], seconds: float) -> None:
        keys = self.lengths.classes_of([each.tenant for each in arrived])
        self._rates.advance(seconds, len(self.lengths.classes))
        if len(arrived):
            np.add.at(self._rates.requests, keys, 1.0)
            np.add.at(self._rates.prompt_tokens, keys, np.array([each.isl_tokens for each in arrived], np.float64))
        for each in arrived:
            self._prompts.add(each.time_s, self._capacity.prefill_s(each.isl_tokens))

    # --- forecasting ----------------------------------------------------------------------------------------

    def _read_in_s(self, flights: _Flights, prefill_workers: int) -> Floats | None:
        """Seconds until each request's prompt will have been read, in order of arrival; 0 once it has output."""
        waits = ~flights.decoding & (flights.made == 0)
        if not prefill_workers or not waits.any():
            return None
        read_in_s = np.zeros(len(waits))
        work_s = [self._capacity.prefill_s(int(tokens)) for tokens in flights.isl[waits]]
        read_in_s[waits] = np.cumsum(work_s) / prefill_workers
        return read_in_s

    def _kv(
        self,
        curves: Curves,
        flights: _Flights,
        speed: float,
        horizons_s: Sequence[float],
        read_in_s: Floats | None = None,
    ) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of KV tokens at each horizon. A preempted request stays as it is."""
        means, deviations = [], []
        every = np.arange(len(self.lengths.classes))
        rate = self._rates.requests / max(1e-9, self._rates.seconds)
        isl = self._rates.prompt_tokens / np.maximum(self._rates.requests, 1e-9)
        gone = curves.hazard(flights.classes, flights.made)
        goes_on = flights.preempted_s < 0
        for horizon_s in horizons_s:
            more = np.where(goes_on, speed * horizon_s, 0.0)
            alive = np.exp(gone - curves.hazard(flights.classes, flights.made + more))
            if read_in_s is not None:
                alive = np.where(read_in_s <= horizon_s + REACH_S, alive, 0.0)
            grown = flights.isl + flights.made + more
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
