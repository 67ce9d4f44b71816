"""What `baton top` draws: pools, demand against capacity, the forecast with its band, decisions, lengths by phase."""

from __future__ import annotations

from collections import deque

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from baton.v1 import cluster_pb2
from cluster.errors import ConfigError
from interface.cli.status_command import canary_lines

_BAR_CHARS = 36
_HISTORY = 72
_LEVELS = "▁▂▃▄▅▆▇█"


def of_model(current: cluster_pb2.Status, name: str | None) -> cluster_pb2.Status:
    """The part of a status that is about one model; the first one's for None.

    Raises:
        ConfigError: the cluster has no such model.
    """
    if not current.models:  # of a gateway that is older than models by name
        return current
    names = [model.name for model in current.models]
    if name is not None and name not in names:
        raise ConfigError(f"the cluster has no model {name!r}; it has {', '.join(names)}")
    found = current.models[names.index(name) if name is not None else 0]
    own = cluster_pb2.Status()
    own.CopyFrom(current)
    workers = [worker for worker in current.workers if worker.model in ("", found.name)]
    ids = {worker.worker_id for worker in workers}
    for field in ("workers", "pairs", "lengths", "scaling", "models"):
        own.ClearField(field)
    own.workers.extend(workers)
    own.pairs.extend(pair for pair in current.pairs if pair.prefill in ids)
    own.lengths.extend(found.lengths)
    own.model = found.name
    own.requests.CopyFrom(found.requests)
    if found.HasField("scaling"):
        own.scaling.CopyFrom(found.scaling)
    return own


class TopView:
    """Draws one status after another; remembers the last ones for the curve of KV in flight.

    Args:
        model: Whose pools to draw; None takes the first model's.
    """

    def __init__(self, model: str | None = None) -> None:
        self._model = model
        self._kv_tokens: deque[float] = deque(maxlen=_HISTORY)

    def render(self, current: cluster_pb2.Status) -> RenderableType:
        """The screen for a status.

        Raises:
            ConfigError: the cluster has no such model.
        """
        current = of_model(current, self._model)
        parts: list[RenderableType] = [_head(current)]
        if current.HasField("scaling"):
            self._kv_tokens.append(current.scaling.demand.kv_tokens)
            parts += [
                Panel(_pools(current), title="pools", title_align="left"),
                Panel(self._demand(current), title="decode: demand and capacity, KV tokens", title_align="left"),
                Panel(_decisions(current.scaling), title="decisions", title_align="left"),
            ]
        else:
            parts += [
                Panel(_pools(current), title="pools", title_align="left"),
                Text("the autoscaler is off: set autoscaling.enabled in the spec", style="dim"),
            ]
        if current.lengths:
            parts.append(Panel(_lengths(current), title="lengths, tokens", title_align="left"))
        if current.canary.findings:
            parts += canary_lines(current.canary)
        return Group(*parts)

    def _demand(self, current: cluster_pb2.Status) -> RenderableType:
        scaling, demand = current.scaling, current.scaling.demand
        pool = next((row for row in scaling.pools if row.role == cluster_pb2.ROLE_DECODE), cluster_pb2.PoolScaling())
        capacity = pool.ready * demand.worker_kv_tokens
        scale = max(capacity, demand.kv_high_tokens, demand.band_high_tokens, demand.kv_tokens, 1.0)
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="left", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        over = demand.kv_high_tokens > capacity
        rows = (
            ("in flight", demand.kv_tokens, "cyan", f"{demand.in_flight_requests} requests"),
            (
                f"95 % under, in {demand.start_s:.0f} s",
                demand.kv_high_tokens,
                "red" if over else "yellow",
                "when a worker ordered now serves",
            ),
            ("capacity", capacity, "green", f"{pool.ready} ready × {_short(demand.worker_kv_tokens)}"),
        )
        for name, value, colour, note in rows:
            table.add_row(name, _bar(value / scale, colour), _short(value), note)
        low, high = demand.band_low_tokens / scale, demand.band_high_tokens / scale
        table.add_row(
            "in a minute, 90 % band",
            _band(low, demand.band_mean_tokens / scale, high),
            _short(demand.band_mean_tokens),
            f"{_short(demand.band_low_tokens)} to {_short(demand.band_high_tokens)}",
        )
        table.add_row(
            "until now", Text(_curve(list(self._kv_tokens)), style="cyan"), "", "in flight, a column a second"
        )
        pace = "as usual" if 0.9 <= demand.pace <= 1.1 else "longer than usual" if demand.pace < 0.9 else "shorter"
        line = Text(
            f"{demand.arrivals_per_s:.1f} requests/s, {demand.prompt_tokens_per_s:,.0f} prompt tokens/s, which want "
            f"{demand.prefill_workers:.1f} prefill workers; {demand.request_tokens_per_s:.0f} tokens/s a request; "
            f"traces are {pace} (pace {demand.pace:.2f})",
            style="dim",
        )
        budget = Text(f"thinking budgets are cut, severity {scaling.thinking_severity:.2f}", style="red")
        return Group(table, line, budget) if scaling.thinking_severity > 0 else Group(table, line)


def _head(current: cluster_pb2.Status) -> Text:
    requests = current.requests
    counts = ("queued", "prefilling", "decoding", "finished", "failed", "rejected")
    line = "  ".join(f"{name} {getattr(requests, name)}" for name in counts)
    return Text.assemble((current.cluster, "bold"), f"  {current.model}   {line}  preempted {requests.preempted}")


def _pools(current: cluster_pb2.Status) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("pool", "ready", "standby", "starting", "draining", "bounds", "running", "KV used"):
        table.add_column(heading, justify="left" if heading in ("pool", "KV used") else "right")
    scaled = {row.role: row for row in current.scaling.pools}
    for role in (cluster_pb2.ROLE_PREFILL, cluster_pb2.ROLE_DECODE, cluster_pb2.ROLE_COLOCATED):
        workers = [worker for worker in current.workers if worker.role == role]
        row = scaled.get(role)
        if not workers and row is None:
            continue
        states = [worker.state for worker in workers]
        used, total = sum(worker.used_blocks for worker in workers), sum(worker.total_blocks for worker in workers)
        share = used / total if total else 0.0
        table.add_row(
            cluster_pb2.Role.Name(role).removeprefix("ROLE_").lower(),
            str(row.ready if row is not None else states.count(cluster_pb2.WORKER_STATE_READY)),
            str(states.count(cluster_pb2.WORKER_STATE_STANDBY)),
            str(row.starting if row is not None else "-"),
            str(row.draining if row is not None else states.count(cluster_pb2.WORKER_STATE_DRAINING)),
            f"{row.min_replicas} to {row.max_replicas}" if row is not None else "fixed",
            str(sum(worker.running_requests for worker in workers)),
            Text.assemble(
                _bar(share, "green" if share < 0.7 else "yellow" if share < 0.9 else "red"), f" {share:4.0%}"
            ),
        )
    return table


def _decisions(scaling: cluster_pb2.Scaling) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column()
    for decision in list(scaling.decisions)[-6:]:
        table.add_row(f"{_ago(decision.age_s)} ago", decision.reason)
    table.add_row("now", Text(scaling.reason or "nothing has been decided", style="dim"))
    return table


def _lengths(current: cluster_pb2.Status) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("phase", "median", "90 %", "99 %", "of the last"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for row in current.lengths:
        table.add_row(
            row.phase, f"{row.p50_tokens:,}", f"{row.p90_tokens:,}", f"{row.p99_tokens:,}", f"{row.requests:,}"
        )
    return table


def _bar(share: float, colour: str) -> Text:
    filled = min(_BAR_CHARS, max(0, round(share * _BAR_CHARS)))
    return Text.assemble(("█" * filled, colour), ("░" * (_BAR_CHARS - filled), "dim"))


def _band(low: float, mean: float, high: float) -> Text:
    """The band as a line, with its middle marked."""
    cells = []
    for index in range(_BAR_CHARS):
        at = (index + 0.5) / _BAR_CHARS
        inside = low <= at <= high
        near = index == min(_BAR_CHARS - 1, int(mean * _BAR_CHARS))
        cells.append(("┃", "bold magenta") if near else ("━", "magenta") if inside else ("·", "dim"))
    return Text.assemble(*cells)


def _curve(values: list[float]) -> str:
    """The last values as a line of blocks, from 0 up to the highest."""
    most = max(values, default=0.0) or 1.0
    return "".join(_LEVELS[min(7, int(8 * value / most))] for value in values[-_BAR_CHARS:])


def _short(tokens: float) -> str:
    """Tokens in few characters.

    >>> _short(950), _short(12_400), _short(3_200_000)
    ('950', '12.4 k', '3.20 M')
    """
    if tokens >= 1e6:
        return f"{tokens / 1e6:.2f} M"
    return f"{tokens / 1e3:.1f} k" if tokens >= 1e4 else f"{tokens:.0f}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
