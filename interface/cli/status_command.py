"""`baton status`: workers, pairs and requests, once or refreshed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable

from google.protobuf.json_format import MessageToDict
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baton.v1 import cluster_pb2
from interface.cli.kube_target import KubeTarget
from interface.cli.up_command import endpoint_of
from interface.client.client import Client
from interface.client.credentials import Credentials

_COLOURS = {"ready": "green", "standby": "cyan", "starting": "yellow", "draining": "yellow", "lost": "red"}


def status(
    name: str | None,
    endpoint: str | None,
    *,
    as_json: bool,
    watch: bool,
    credentials: Credentials | None = None,
    target: KubeTarget | None = None,
    draw: Callable[[cluster_pb2.Status], RenderableType] | None = None,
) -> None:
    """Show the status; see `baton status --help`. ``draw`` makes another screen of it, as `baton top` does."""
    draw = draw or render
    console = Console(highlight=False)
    with contextlib.ExitStack() as stack:
        if target is not None:
            address, credentials = stack.enter_context(target.gateway(credentials or Credentials()))
        else:
            address = endpoint_of(name, endpoint)
        client = stack.enter_context(Client(address, credentials=credentials))
        if not watch:
            _show(client.get_status(), console, as_json, draw)
            return
        if as_json:
            for current in client.watch_status():
                _show(current, console, as_json, draw)
            return
        with Live(console=console, auto_refresh=False, screen=True) as live:
            for current in client.watch_status():
                live.update(draw(current), refresh=True)


def _show(
    current: cluster_pb2.Status, console: Console, as_json: bool, draw: Callable[[cluster_pb2.Status], RenderableType]
) -> None:
    if as_json:
        tree = MessageToDict(current, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(tree), flush=True)
    else:
        console.print(draw(current))


def render(current: cluster_pb2.Status) -> Group:
    """Tables of one status."""
    parts: list[RenderableType] = [_head(current), ""]
    if len(current.models) > 1:
        parts += [_model_table(current.models), ""]
    parts.append(_worker_table(current.workers))
    if current.pairs:
        parts += ["", _pair_table(current.pairs)]
    if current.HasField("canary"):
        parts += ["", *canary_lines(current.canary)]
    for model in current.models:
        if model.HasField("scaling"):
            name = [Text(f"{model.name}:", style="bold")] if len(current.models) > 1 else []
            parts += ["", *name, *_scaling(model.scaling)]
    if not current.models and current.HasField("scaling"):  # of a gateway that is older than models by name
        parts += ["", *_scaling(current.scaling)]
    return Group(*parts)


def _head(current: cluster_pb2.Status) -> Text:
    requests = current.requests
    return Text.assemble(
        (current.cluster, "bold"),
        f"  {', '.join(model.name for model in current.models) or current.model}  up {_duration(current.uptime_s)}   "
        f"queued {requests.queued}  prefilling {requests.prefilling}  decoding {requests.decoding}   "
        f"finished {requests.finished}  failed {requests.failed}  rejected {requests.rejected}  "
        f"preempted {requests.preempted}",
    )


def _table(headings: Iterable[str], *, right: Collection[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left")
    return table


def _model_table(models: Iterable[cluster_pb2.ModelStatus]) -> Table:
    counts = ("queued", "prefilling", "decoding", "finished", "failed", "rejected", "preempted")
    table = _table(("model", *counts), right=counts)
    for model in models:
        table.add_row(model.name, *(f"{getattr(model.requests, count):,}" for count in counts))
    return table


def _worker_table(workers: Iterable[cluster_pb2.WorkerStatus]) -> Table:
    counts = ("running", "waiting", "prompt", "output", "preempted")
    headings = (
        "worker", "role", "state", "running", "waiting", "KV used", "reserved", "prompt", "output", "preempted", "on",
        "address",
    )  # fmt: skip
    table = _table(headings, right=counts)
    for worker in workers:
        state = cluster_pb2.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
        table.add_row(
            worker.worker_id,
            cluster_pb2.Role.Name(worker.role).removeprefix("ROLE_").lower(),
            Text(state, style=_COLOURS.get(state, "")),
            str(worker.running_requests),
            str(worker.waiting_requests),
            _bar(worker.used_blocks, worker.total_blocks),
            f"{worker.reserved_blocks} blocks",
            f"{worker.prompt_tokens:,}",
            f"{worker.output_tokens:,}",
            f"{worker.preemptions:,}",
            f"{worker.accelerator} {worker.node}{' spot' if worker.spot else ''}",
            worker.address,
        )
    return table


def _pair_table(pairs: Iterable[cluster_pb2.PairStatus]) -> Table:
    table = _table(("pair", "transport", "handoffs", "KV moved", "mean rate", "handshake"))
    for pair in pairs:
        rate = f"{pair.bytes / pair.transfer_s / 2**30:.2f} GiB/s" if pair.transfer_s else "-"
        table.add_row(
            f"{pair.prefill} → {pair.decode}",
            Text.assemble(pair.transport, ("  refused", "red")) if pair.refused else pair.transport,
            str(pair.handoffs),
            f"{pair.bytes / 2**20:.1f} MiB",
            rate,
            f"{pair.handshake_s * 1000:.0f} ms",
        )
    return table


def canary_lines(canary: cluster_pb2.CanaryReport, now_unix_s: float | None = None) -> list[RenderableType]:
    """Whether workers compute rightly, and what was found lately."""
    now_unix_s = time.time() if now_unix_s is None else now_unix_s
    asked = [row for row in canary.workers if row.runs]
    if not asked:
        return []
    oldest_s = min(row.last_ok_unix_s for row in asked)
    share = max(row.cost_ratio for row in asked)
    judged = "the model's reference" if canary.has_reference else "one another (`baton model check` writes a reference)"
    wrong = sum(sum(row.failures.values()) for row in asked)
    since = (
        f"each worker was right within the last {_duration(now_unix_s - oldest_s)}"
        if oldest_s
        else "not all were right"
    )
    lines: list[RenderableType] = [
        Text(
            f"canary: {sum(row.runs for row in asked):,} answers, {wrong:,} wrong, judged by {judged}; {since}; "
            f"at most {share:.3%} of a worker's time",
            style="dim",
        )
    ]
    for finding in list(canary.findings)[-3:]:
        lines.append(Text(f"{_duration(now_unix_s - finding.unix_s)} ago: {finding.sentence}", style="red"))
    return lines


def _scaling(scaling: cluster_pb2.Scaling) -> list[RenderableType]:
    """The autoscaler in a few lines; `baton top` has more."""
    demand = scaling.demand
    last = scaling.decisions[-1] if scaling.decisions else None
    lines: list[RenderableType] = [
        Text(
            f"autoscaler: KV in flight {demand.kv_tokens:,.0f} tokens, 95 % under {demand.kv_high_tokens:,.0f} in "
            f"{demand.start_s:.0f} s, a decode worker takes {demand.worker_kv_tokens:,.0f}"
        )
    ]
    if last is not None:
        lines.append(Text(f"last change {last.age_s:.0f} s ago: {last.reason}", style="dim"))
    return lines


def _bar(used: int, total: int, width: int = 12) -> Text:
    share = used / total if total else 0.0
    filled = round(share * width)
    style = "red" if share > 0.9 else "yellow" if share > 0.7 else "green"
    return Text.assemble(("█" * filled, style), ("░" * (width - filled), "dim"), f" {share:4.0%}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
