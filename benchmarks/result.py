"""Ratios, bars and the table of the comparison. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""One measurement: ``contender``, ``clients``, ``repetition`` and the figures of `baton bench`, times in seconds."""

BASE = "vllm server"
BARE = "bare engine"


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio that must hold. ``limit`` is the most (``at_most``) or the least it may be."""

    title: str
    clients: int
    figure: str
    against: str
    limit: float
    at_most: bool

    def holds(self, ratio: float) -> bool:
        return ratio <= self.limit if self.at_most else ratio >= self.limit


BARS = (
    Bar("TTFT p50, 1 client", 1, "ttft_p50_s", BASE, 1.25, True),
    Bar("tokens/s, 32 clients", 32, "tokens_per_s", BASE, 0.95, False),
    Bar("ITL p50, 1 client", 1, "itl_p50_s", BARE, 1.3, True),
)
"""Issue 2, "Must hold"; with them, no failed request."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A bar's ratio in each repetition, both sides of one measured within minutes of each other."""

    bar: Bar
    contender: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        return self.bar.holds(self.median)


def ratios(rows: Sequence[Row], contenders: Sequence[str]) -> list[Ratio]:
    """Each contender against each bar: per repetition, so that drift of the machine cancels, then the median."""
    found = []
    for contender in contenders:
        for bar in BARS:
            values = []
            for repetition in sorted({row["repetition"] for row in rows}):
                ours = _figure(rows, contender, bar, repetition)
                theirs = _figure(rows, bar.against, bar, repetition)
                if ours is not None and theirs:
                    values.append(ours / theirs)
            if values:
                found.append(Ratio(bar, contender, tuple(values)))
    return found


def _figure(rows: Sequence[Row], contender: str, bar: Bar, repetition: int) -> float | None:
    return next(
        (
            row[bar.figure]
            for row in rows
            if (row["contender"], row["clients"], row["repetition"]) == (contender, bar.clients, repetition)
        ),
        None,
    )


def failed(rows: Sequence[Row]) -> int:
    return sum(row["failed"] for row in rows)


def markdown(rows: Sequence[Row], found: Sequence[Ratio], facts: dict[str, Any]) -> str:
    """The tables, for docs/benchmarks.md."""
    lines = [
        f"{facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']:.0f} GiB, Python {facts['python']}, "
        f"vLLM {facts['vllm']}, {facts['date']}; {facts['parameters_m']:.1f} M parameters in {facts['dtype']}, "
        f"ISL {facts['isl']}, OSL {facts['osl']}, closed loop, medians of {facts['repetitions']} repetitions in turn; "
        f"cores in use by others before each: {', '.join(f'{load:.1f}' for load in facts['load_before'])}.",
        "",
        f"`{facts['command']}`",
        "",
        "| served by | clients | TTFT p50 / p99 ms | ITL p50 / p99 ms | tokens/s | CPU s per 1k tokens | failed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for contender, clients in dict.fromkeys((row["contender"], row["clients"]) for row in rows):
        mine = [row for row in rows if (row["contender"], row["clients"]) == (contender, clients)]
        cpu = _median(mine, "cpu_s_per_1k_tokens")
        lines.append(
            f"| {contender} | {clients} | {_ms(mine, 'ttft_p50_s')} / {_ms(mine, 'ttft_p99_s')} "
            f"| {_ms(mine, 'itl_p50_s')} / {_ms(mine, 'itl_p99_s')} | {_median(mine, 'tokens_per_s') or 0:.0f} "
            f"| {'-' if cpu is None else f'{cpu:.2f}'} | {failed(mine)} |"
        )
    lines += ["", "| ratio | contender | median | each | bar | |", "|---|---|---:|---|---|---|"]
    for each in found:
        bar = each.bar
        values = ", ".join(f"{value:.2f}" for value in each.values)
        sign = "<=" if bar.at_most else ">="
        mark = "holds" if each.holds else "**missed**"
        lines.append(
            f"| {bar.title}, against {bar.against} | {each.contender} | {each.median:.2f} | {values} "
            f"| {sign} {bar.limit:g} | {mark} |"
        )
    idle: dict[str, list[float]] = {}
    for row in rows:
        if row.get("idle_cores") is not None:
            idle.setdefault(row["contender"].partition(",")[0], []).append(row["idle_cores"])
    if idle:
        shares = ", ".join(f"{server} {statistics.median(values):.1%}" for server, values in idle.items())
        lines += ["", f"Idle, of one core: {shares}."]
    return "\n".join(lines) + "\n"


def _median(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.median(values) if values else None


def _ms(rows: Sequence[Row], key: str) -> str:
    value = _median(rows, key)
    return "-" if value is None else f"{value * 1000:.1f}"


def insert(document: str, table: str) -> str:
    """Put the tables between the marks of docs/benchmarks.md; a document without marks gets them at its end."""
    begin, end = "<!-- compare:begin -->", "<!-- compare:end -->"
    block = f"{begin}\n{table}{end}"
    head, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{block}\n"
    return head + block + rest.partition(end)[2]
