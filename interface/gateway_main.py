"""The gateway process: `python -m interface.gateway_main --spec F --controller H:P --ports-file F`."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from cluster.internal_rpc import InternalRpc
from cluster.model import model_path
from cluster.model.model_parsers import AUTO, with_parsers
from cluster.spec.config import ClusterSpec
from cluster.spec.portfolio import Portfolio, load
from interface.authentication import Authentication
from interface.grpc_server import serve_grpc
from interface.http.server import serve_http
from interface.listening import listen
from orchestrator.gateway.gateway import Gateway, Spans
from orchestrator.policy.readiness import can_serve
from orchestrator.registry import watch
from orchestrator.request.model_front import ModelFront, load_model_front
from orchestrator.request.torch_hidden import torch_hidden
from orchestrator.request.vllm_reasoning import with_vllm_markers

log = logging.getLogger("baton.gateway")
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that ends (Linux).

    Raises:
        SystemExit: it has ended already, while this one was imported.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the process that started this gateway is gone")


async def _serve_metrics(gateway: Gateway, host: str, port: int, authentication: Authentication) -> tuple[Any, int]:
    if gateway.spec.security.open_metrics:
        authentication = Authentication()
    runner = web.AppRunner(gateway.metrics.serve(gateway.refresh_gauges, authentication.check), access_log=None)
    await runner.setup()
    await listen(runner, host, port, ssl_context=authentication.ssl_context())
    return runner, runner.addresses[0][1]


async def _serve_probes(gateway: Gateway, host: str, port: int) -> Any:
    """Serve what Kubernetes asks, on a port of its own: without TLS and keys, which a kubelet does not have."""

    async def lives(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def ready(_: web.Request) -> web.Response:
        # The controller publishes a worker as ready only once all its pairs have completed their handshake.
        waiting = [
            name
            for name, model in gateway.models_served.items()
            if not can_serve((view.role.value, view.accepting) for view in model.fleet.views())
        ]
        if not waiting:
            return web.Response(text="ready\n")
        text = f"waiting for workers of {', '.join(waiting)} whose pairs have completed their handshake\n"
        return web.Response(text=text, status=503)

    app = web.Application()
    app.add_routes([web.get("/startupz", lives), web.get("/livez", lives), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await listen(runner, host, port)
    return runner


def _loaded(spec: ClusterSpec) -> tuple[ClusterSpec, ModelFront]:
    """The spec with its model's parsers, and the model as a gateway needs it."""
    folder = model_path.check(spec.model.path)
    asked = spec.model.tool_parser
    spec = spec.model_copy(update={"model": with_vllm_markers(with_parsers(spec.model, folder), folder)})
    with torch_hidden():
        front = load_model_front(spec, folder)
    if front.calls is not None and (asked != AUTO or front.calls.reads_all):
        front.calls.load()
    return spec, front


def _spans(spec: ClusterSpec) -> Spans | None:
    if spec.gateway.tracing is None:
        return None
    from orchestrator.gateway.request_spans import RequestSpans  # OpenTelemetry's SDK, for those who trace

    return RequestSpans(spec.gateway.tracing, spec.name)


async def serve(
    portfolio: Portfolio,
    controller: str,
    ports_file: Path | None,
    *,
    probe_port: int | None = None,
    grace_s: float = 2,
) -> None:
    """Serve until SIGTERM or SIGINT; running streams then have ``grace_s`` seconds to end."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    spec = portfolio.first
    authentication = Authentication(spec.security)
    loaded = {name: _loaded(each) for name, each in portfolio.models.items()}
    portfolio = portfolio.map_models(lambda name, _: loaded[name][0])
    fronts = {name: front for name, (_, front) in loaded.items()}
    gateway = Gateway(portfolio, fronts, _spans(spec), load=_loaded)
    watcher = asyncio.create_task(watch(controller, gateway.update_members, InternalRpc(spec.security)))
    gateway.report_to(controller)
    settings = spec.gateway
    metrics_runner, metrics_port = await _serve_metrics(gateway, settings.host, settings.metrics_port, authentication)
    grpc_server, grpc_port = await serve_grpc(gateway, settings, authentication)
    http_runner, http_port = await serve_http(
        gateway, settings, authentication, count_ignored=gateway.metrics.count_ignored
    )
    # What was imported stays: a full collection would hold every stream up for it, some 50 ms at a time.
    gc.collect()
    gc.freeze()
    ports = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port, "pid": os.getpid()}
    log.info("serving: %s", ports)
    if not authentication.is_guarded and settings.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("anybody who reaches %s may use this cluster: set security.api_keys_file or jwt", settings.host)
    if ports_file is not None:
        partial = ports_file.with_suffix(".part")
        partial.write_text(json.dumps(ports))
        partial.rename(ports_file)
    probes = await _serve_probes(gateway, settings.host, probe_port) if probe_port is not None else None
    await stop.wait()
    await grpc_server.stop(grace=grace_s)
    if probes is not None:
        await probes.cleanup()
    await http_runner.cleanup()
    await metrics_runner.cleanup()
    watcher.cancel()
    await gateway.close()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="baton-gateway")
    parser.add_argument("--spec", type=Path, required=True, help="cluster spec")
    parser.add_argument("--controller", required=True, help="host:port of the controller's registry")
    parser.add_argument("--ports-file", type=Path, help="where to write the ports taken, as JSON")
    parser.add_argument("--ports", help="gRPC, HTTP and metrics port, with commas, in place of the spec's")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when this process, the parent, ends")
    parser.add_argument("--host", help="address to listen on, in place of the spec's gateway.host")
    parser.add_argument("--probe-port", type=int, help="serve /startupz, /readyz and /livez here")
    parser.add_argument("--grace-s", type=float, default=2, help="seconds that running streams have at the end")
    arguments = parser.parse_args()
    if arguments.with_parent:
        die_with_parent(arguments.with_parent)
    logging.basicConfig(
        level=os.environ.get("BATON_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    portfolio = load(arguments.spec)
    listen: dict[str, Any] = {}
    if arguments.ports:
        names = ("grpc_port", "http_port", "metrics_port")
        listen |= dict(zip(names, map(int, arguments.ports.split(",")), strict=True))
    if arguments.host:
        listen["host"] = arguments.host
    portfolio = portfolio.with_gateway(listen)
    uvloop.run(
        serve(
            portfolio,
            arguments.controller,
            arguments.ports_file,
            probe_port=arguments.probe_port,
            grace_s=arguments.grace_s,
        )
    )


if __name__ == "__main__":
    main()
