"""`baton doctor`: checks this machine and measures the links between prefill and decode workers."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.errors import ConfigError
from cluster.spec.config import ClusterSpec
from cluster.spec.portfolio import load
from doctor import answers_check
from doctor.checks import Check, State, run_checks
from doctor.link_diagnosis import (
    Diagnosis,
    LinkReport,
    Measure,
    Pair,
    bandwidth_text,
    examine_links,
    local_pairs,
    measure_here,
    tls_of,
)
from orchestrator.local.state_file import read_state

_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red"}


def doctor(
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Cluster spec; left out, the embedded local one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model, where the spec has several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of tables.")] = False,
    min_ratio: Annotated[
        float, typer.Option(help="Measured over expected bandwidth, below which a link has failed.", min=0)
    ] = 0.5,
    address: Annotated[
        str | None,
        typer.Option(help="Join this Ray cluster and measure between its nodes; left out, within this machine."),
    ] = None,
    max_mib: Annotated[
        int, typer.Option(help="Largest read that is measured, MiB; each end takes twice that in memory.", min=1)
    ] = 256,
    controller: Annotated[
        str | None,
        typer.Option(
            envvar="BATON_CONTROLLER",
            help="host:port of the registry of a running cluster that is to answer; left out, of the one here.",
        ),
    ] = None,
) -> None:
    """Check this machine and measure every prefill-decode link with NIXL.

    Where a cluster runs, each of its workers, and each pair, answers the canary's fixed prompts. Exits with 0 when all
    is well, and with 1 and a sentence when a check fails, an answer is wrong or a link is far below what it should be.
    """
    console = Console(stderr=as_json)
    try:
        spec = load(file).model(model)
    except ConfigError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    checks: list[Check] = []
    links: list[LinkReport] = []
    with console.status("checking this machine") as status:
        for check in run_checks(spec, tls_of(spec)):
            checks.append(check)
            status.update(f"checked {check.name}")
        sizes = tuple(size for size in (4 << 10, 64 << 10, 1 << 20, 16 << 20) if size < max_mib << 20)
        status.update("measuring links")
        with _places(spec, address) as (pairs, measure):
            links.extend(
                examine_links(spec, pairs, min_ratio=min_ratio, measure=measure, sizes_bytes=(*sizes, max_mib << 20))
            )
        status.update("asking the workers")
        rows, why = _answers(spec, controller)
    notes = () if pairs else ("the spec has no prefill-decode pair, so no KV is handed over",)
    diagnosis = Diagnosis(tuple(checks), tuple(links), (*notes, *why), tuple(answers_check.problems(rows)))
    if as_json:
        json.dump({**diagnosis.to_dict(), "answers": answers_check.to_dict(rows)}, sys.stdout, indent=2)
        print()
    else:
        if rows:
            console.print(answers_check.table(rows), highlight=False)
        show(diagnosis, console)
    if diagnosis.problems:
        raise typer.Exit(1)


def _answers(spec: ClusterSpec, controller: str | None) -> tuple[list[answers_check.Row], tuple[str, ...]]:
    """What the workers of a running cluster answer, and notes; nothing where none runs here."""
    state = None if controller else read_state(spec.name)
    if controller is None and (state is None or not state.is_alive()):
        return [], ()
    registry = controller or (state.registry if state is not None else "")
    try:
        return answers_check.answers_of(registry, spec.security), ()
    except ConfigError as error:
        return [], (str(error),)


@contextlib.contextmanager
def _places(spec: ClusterSpec, address: str | None) -> Iterator[tuple[list[Pair], Measure]]:
    """The pairs to measure and how: on this machine, or on the nodes of a Ray cluster."""
    if address is None:
        yield local_pairs(spec), measure_here
        return
    from cluster.ray_runtime import RayRuntime
    from doctor.link_survey import RayMeasure, node_pairs

    runtime = RayRuntime(address)
    runtime.start()
    try:
        yield node_pairs(spec, runtime.nodes()), RayMeasure(runtime)
    finally:
        runtime.stop()


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the tables, then one sentence per problem."""
    table = Table(title="This machine", title_justify="left")
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for check in diagnosis.checks:
        state = f"[{_STYLES[check.state]}]{check.state.value}[/]"
        table.add_row(escape(check.name), state, escape(check.found), escape(check.advice))
    console.print(table, highlight=False)
    if diagnosis.links:
        console.print(_links(diagnosis.links), highlight=False)
    for note in diagnosis.notes:
        console.print(note, markup=False)
    for link in diagnosis.links:
        sentence = f"{link.pair.names[0]}: {link.verdict.sentence}"
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for problem in diagnosis.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if not diagnosis.problems:
        console.print("[green]all is well[/]")


def _links(links: tuple[LinkReport, ...]) -> Table:
    table = Table(title="Links, NIXL reads by the decode end", title_justify="left")
    table.add_column("pair", overflow="fold", min_width=12)
    table.add_column("used (of allowed)", overflow="fold", min_width=18)
    for heading in ("µs", "GiB/s", "should", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    for link in links:
        found = link.measurement
        more = f" and {len(link.pair.names) - 1} alike" if len(link.pair.names) > 1 else ""
        table.add_row(
            f"{link.pair.names[0]}{more}",
            f"{_used(link)} ({', '.join(transport.value for transport in link.allowed)})",
            f"{found.fit.latency_s * 1e6:.0f}" if found else "-",
            bandwidth_text(found.fit.bytes_per_s if found else None),
            bandwidth_text(link.expected_bytes_per_s),
            f"{link.verdict.ratio:.2f}" if link.verdict.ratio is not None else "-",
            "[green]ok[/]" if link.verdict.ok else "[bold red]bad[/]",
        )
    return table


def _used(link: LinkReport) -> str:
    found = link.measurement
    if found is None:
        return "-"
    lanes = f" by {', '.join(found.protocol.lanes)}" if found.protocol and found.protocol.lanes else ""
    return f"{found.used or 'not said'}{lanes}"
