"""Prometheus metrics of one worker: vLLM's own, passed through, and Baton's, all with pool and worker as labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from baton.internal.v1 import worker_pb2
from cluster.errors import Unauthenticated

Labels = Callable[[], Mapping[str, str]]
"""A worker's ``pool``, that of its present role, and its name as ``worker``."""
Load = Callable[[], worker_pb2.WorkerLoad]


class _Labelled:
    """Yields every metric of the process with the worker's labels, and the worker's own metrics. Owns nothing."""

    def __init__(self, labels: Labels, load: Load) -> None:
        self._labels = labels
        self._load = load

    def collect(self) -> Iterator[Metric]:
        labels = self._labels()
        for metric in REGISTRY.collect():
            copy = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            copy.samples = [sample._replace(labels={**sample.labels, **labels}) for sample in metric.samples]
            yield copy
        yield from self._own(labels)

    def _own(self, labels: Mapping[str, str]) -> Iterator[Metric]:
        load = self._load()
        names, values = list(labels), list(labels.values())
        gauges = {
            "baton_worker_running_requests": ("Requests in the engine's batch", load.running_requests),
            "baton_worker_waiting_requests": ("Requests waiting in the engine", load.waiting_requests),
            "baton_worker_used_kv_blocks": ("KV blocks in use, leased ones included", load.used_blocks),
            "baton_worker_total_kv_blocks": ("KV blocks there are", load.total_blocks),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=names)
            gauge.add_metric(values, value)
            yield gauge
        counters = {
            "baton_worker_prompt_tokens": ("Prompt tokens prefilled", load.prompt_tokens),
            "baton_worker_output_tokens": ("Tokens generated", load.output_tokens),
            "baton_worker_engine_steps": ("Engine steps", load.steps),
            "baton_worker_preemptions": (
                "Times a request lost its KV blocks to others and was computed again",
                load.preemptions,
            ),
        }
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=names)
            counter.add_metric(values, value)
            yield counter


async def serve_metrics(
    host: str, labels: Labels, load: Load, *, check: Callable[[str], None] | None = None
) -> tuple[Any, int]:
    """Serve ``/metrics`` on a free port; returns the runner (to clean up) and the port.

    ``check`` raises `Unauthenticated` for an ``Authorization`` header that is not to be served.
    """
    registry = CollectorRegistry()
    registry.register(_Labelled(labels, load))

    async def metrics(request: web.Request) -> web.Response:
        if check is not None:
            try:
                check(request.headers.get("Authorization", ""))
            except Unauthenticated as error:
                return web.Response(status=401, text=error.message, headers={"WWW-Authenticate": "Bearer"})
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    port: int = runner.addresses[0][1]
    return runner, port
