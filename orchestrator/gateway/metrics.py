"""Prometheus metrics of the gateway. Names are public interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from baton.v1.cluster_pb2 import CanaryReport
from baton.v1.inference_pb2 import InferenceScalingReport
from cluster.errors import Unauthenticated
from cluster.spec.config import SloSettings

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_ITL_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_BYTES = tuple(float(1 << power) for power in range(12, 38, 2))


def _with(buckets: tuple[float, ...], bound_s: float | None) -> tuple[float, ...]:
    """The buckets and one that ends at an objective, so that the share of requests within it is exact."""
    return buckets if bound_s is None else tuple(sorted({*buckets, bound_s}))


class FoldedHistogram(Collector):
    """A histogram that takes many observations at once: one each for every token of every stream costs too much.

    Args:
        name: Of the metric.
        documentation: What it is.
        buckets: Upper bounds, without infinity.
    """

    def __init__(self, name: str, documentation: str, buckets: tuple[float, ...]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.array(buckets)
        self._counts = np.zeros(len(buckets) + 1, dtype=np.int64)
        self._sum = 0.0

    def fold(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        """Take observations; a value on a bound belongs to its bucket."""
        found = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._counts += found
        self._sum += float(values.sum())

    def collect(self) -> Iterator[Metric]:
        """The metric."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], list(zip(names, map(float, self._counts.cumsum()), strict=True)), self._sum)
        yield family


class CanaryMetrics(Collector):
    """The controller's last report of canaries as metrics; every gateway has the same."""

    def __init__(self) -> None:
        self.report: CanaryReport | None = None

    def collect(self) -> Iterator[Metric]:
        """The metrics; none before the controller's first report."""
        runs = CounterMetricFamily("baton_canary_runs", "Canaries answered", labels=["worker"])
        failures = CounterMetricFamily(
            "baton_canary_failures", "Canaries answered wrongly, by probe", labels=["worker", "probe"]
        )
        share = GaugeMetricFamily(
            "baton_canary_cost_ratio", "Share of its time in service that canaries took", labels=["worker"]
        )
        last_ok = GaugeMetricFamily(
            "baton_canary_last_ok_timestamp_seconds", "When its last right answer came", labels=["worker"]
        )
        far = GaugeMetricFamily(
            "baton_canary_deviation_nat", "Largest difference of a log-probability, last run", labels=["worker"]
        )
        for row in self.report.workers if self.report is not None else ():
            name = [row.worker_id]
            runs.add_metric(name, row.runs)
            for probe in ("alone", "handoff", "weights"):
                failures.add_metric([row.worker_id, probe], row.failures.get(probe, 0))
            share.add_metric(name, row.cost_ratio)
            last_ok.add_metric(name, row.last_ok_unix_s)
            far.add_metric(name, row.deviation_nat)
        yield from (runs, failures, share, last_ok, far)


class StrategyMetrics:
    """What requests with several traces came to.

    Args:
        make: Options of each metric.
    """

    def __init__(self, make: dict[str, Any]) -> None:
        self.siblings = Counter(
            "baton_siblings",
            "Further choices placed where a sibling has their prompt, by whether the engine found it",
            ["result"],
            **make,
        )
        self.requests = Counter(
            "baton_inference_scaling_requests",
            "Requests answered by a strategy, by what ended it",
            ["strategy", "reason"],
            **make,
        )
        self.branches = Counter(
            "baton_branches", "Traces that a strategy started, by how they ended", ["strategy", "end"], **make
        )
        self.tokens = Counter(
            "baton_branch_tokens",
            "Output tokens of the answer's trace and of others",
            ["strategy", "of"],
            **make,
        )

    def count(self, report: InferenceScalingReport, ends: Mapping[str, int]) -> None:
        """A request was answered, with so many traces by how they ended."""
        self.requests.labels(report.strategy, report.stop_reason).inc()
        for end, count in ends.items():
            self.branches.labels(report.strategy, end).inc(count)
        self.tokens.labels(report.strategy, "winner").inc(report.tokens.winner)
        self.tokens.labels(report.strategy, "losers").inc(report.tokens.losers)


class ByModel(Collector):
    """The metrics of several models' registries, each sample with its model as a label."""

    def __init__(self) -> None:
        self.registries: dict[str, CollectorRegistry] = {}

    def collect(self) -> Iterator[Metric]:
        """The metrics, each once, with the samples of all models."""
        found: dict[str, Metric] = {}
        for model, registry in self.registries.items():
            for metric in registry.collect():
                whole = found.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
                )
                whole.samples += [
                    sample._replace(labels={"model": model, **sample.labels}) for sample in metric.samples
                ]
        yield from found.values()


class ModelMetrics:
    """The metrics of one model, in a registry of their own; they are served with the model as a label.

    Args:
        slo: Objectives; each is a bucket bound of its histogram.
    """

    def __init__(self, slo: SloSettings | None = None) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        slo = slo or SloSettings()
        self.ttft_s = Histogram(
            "baton_ttft_seconds", "Received to first token", buckets=_with(_LATENCY_S, slo.ttft_p95_s), **make
        )
        self.ttfat_s = Histogram(
            "baton_ttfat_seconds", "Received to first answer token", buckets=_with(_LATENCY_S, slo.ttfat_p95_s), **make
        )
        self.itl_s = FoldedHistogram("baton_itl_seconds", "Gap between tokens", _with(_ITL_S, slo.itl_p95_s))
        self.registry.register(self.itl_s)
        self.e2e_s = Histogram(
            "baton_e2e_seconds", "Received to last token", buckets=_with(_LATENCY_S, slo.e2e_p95_s), **make
        )
        self.queue_s = Histogram("baton_queue_seconds", "Received to placed", buckets=_LATENCY_S, **make)
        self.handoff_s = Histogram(
            "baton_handoff_seconds", "Ticket to decode's first token", buckets=_LATENCY_S, **make
        )
        self.transfer_s = Histogram("baton_transfer_seconds", "Movement of KV bytes", buckets=_LATENCY_S, **make)
        self.handoff_bytes = Histogram("baton_handoff_bytes", "KV bytes of a handoff", buckets=_BYTES, **make)
        self.tokens = Counter("baton_tokens", "Tokens by phase", ["phase"], **make)
        self.finished = Counter("baton_requests_finished", "Requests finished by reason", ["reason"], **make)
        self.retries = Counter("baton_retries", "Ledgers prefilled again after a failure", **make)
        self.strategies = StrategyMetrics(make)
        self.moves = Counter("baton_moves", "Requests moved off a draining worker with their KV", **make)
        self.rebalanced = Counter(
            "baton_rebalanced", "Requests moved off a decode worker that would have run out of KV", **make
        )
        self.preempted = Counter(
            "baton_preempted", "Running requests that were preempted for others while a decode worker started", **make
        )
        self.moved_recomputed = Counter(
            "baton_moved_recomputed_tokens", "Tokens computed again in a move: the last, partial block", **make
        )
        self.reduced_budgets = Counter(
            "baton_reduced_budgets", "Choices whose thinking budget was made smaller for want of KV", **make
        )
        self.clipped_traces = Counter("baton_clipped_traces", "Those whose reasoning reached that budget", **make)
        self.in_flight = Gauge("baton_in_flight_requests", "Requests by state", ["state"], **make)
        self.kv_used = Gauge("baton_kv_used_ratio", "KV blocks in use", ["pool", "worker"], **make)
        self.kv_reserved = Gauge("baton_kv_reserved_blocks", "KV blocks reserved", ["pool", "worker"], **make)
        self.pairs = Gauge("baton_pairs", "Pairs of workers by the transport that was chosen", ["transport"], **make)
        self.workers = Gauge("baton_workers", "Workers by pool and state", ["pool", "state"], **make)


class GatewayMetrics:
    """All metrics of one gateway, in a registry of their own: those of its models, and what concerns none of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self.failed = Counter("baton_requests_failed", "Requests failed by error", ["model", "error"], **make)
        self.rejected = Counter("baton_requests_rejected", "Requests refused by reason", ["model", "reason"], **make)
        self.routed = Counter("baton_requests_routed", "Requests by route and model", ["route", "model"], **make)
        self._ignored_fields = Counter(
            "baton_ignored_fields",
            "Requests over HTTP with a field that was let through without effect",
            ["field"],
            **make,
        )
        self.canary = CanaryMetrics()
        self.registry.register(self.canary)
        self._models = ByModel()
        self.registry.register(self._models)

    def of_model(self, name: str, slo: SloSettings) -> ModelMetrics:
        """New metrics of a model, which are served from now on."""
        metrics = ModelMetrics(slo)
        self._models.registries[name] = metrics.registry
        return metrics

    def forget_model(self, name: str) -> None:
        """A model's metrics are served no more."""
        del self._models.registries[name]

    def count_ignored(self, field: str) -> None:
        """Count a request with a field that was let through without effect; callers have few names for it."""
        self._ignored_fields.labels(field).inc()

    def serve(self, refresh: Callable[[], None], check: Callable[[str], object] = lambda _: None) -> web.Application:
        """A web application with ``/metrics``; ``refresh`` sets the gauges before each scrape.

        ``check`` raises `Unauthenticated` for an ``Authorization`` header that is not to be served.
        """

        async def metrics(request: web.Request) -> web.Response:
            try:
                check(request.headers.get("Authorization", ""))
            except Unauthenticated as error:
                return web.Response(status=401, text=error.message, headers={"WWW-Authenticate": "Bearer"})
            refresh()
            return web.Response(body=generate_latest(self.registry), content_type="text/plain")

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        return app

    def names(self) -> Iterator[str]:
        """Names of all metrics, for the documentation test."""
        for metric in self.registry.collect():
            yield metric.name
