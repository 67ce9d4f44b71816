"""``baton calibrate``: three factors from measured points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.errors import ConfigError
from cluster.hardware.catalogue import gpu as gpu_named
from planner.capacity.calibrate import calibrate as fit_scales
from planner.capacity.console import CONSOLE, PlanFile, exits
from planner.capacity.live_points import measure
from planner.capacity.measured import read_points
from planner.capacity.resolve import resolve
from planner.capacity.spec import PlanSpec, load


def calibrate(
    file: PlanFile,
    points: Annotated[
        list[Path] | None, typer.Argument(help="Measured points: our records, guidellm, aiperf, vLLM bench serve.")
    ] = None,
    held_back: Annotated[list[Path] | None, typer.Option("--held-back", help="Points to check on, not fitted.")] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="Kind of GPU measured; the plan's first if left out.")] = "",
    tp: Annotated[int, typer.Option("--tp", help="GPUs of the worker measured.", min=1)] = 1,
    url: Annotated[str, typer.Option("--url", help="Measure this OpenAI-compatible server in place of files.")] = "",
    loads: Annotated[
        str, typer.Option("--loads", help="With --url: clients:input:output, comma-separated.")
    ] = "1:128:64,1:512:64,2:128:64,2:512:128,4:256:128,4:512:64",
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan file with the factors here.")] = None,
) -> None:
    """Fit three factors (compute, memory, overhead) to measured points, and say what they gain on others."""
    with exits():
        spec = load(file)
        problem = resolve(spec.model_copy(update={"engine": spec.engine.model_copy(update={"scales": _PLAIN})}))
        kind = next((each for each in problem.gpus if each.name == gpu), None)
        kind = kind or (gpu_named(gpu) if gpu else problem.gpus[0])
        measured = read_points(points or [])
        if url:
            name = problem.model.name
            measured += [measure(url, name, *each) for each in _loads(loads)]
        found = fit_scales(problem, kind, tp, measured, read_points(held_back or []))
        scales = found.scales
        CONSOLE.print(
            f"compute x{scales.compute:.3f}, memory x{scales.memory:.3f}, overhead x{scales.overhead:.3f} "
            f"from {found.trained} points",
            style="bold",
            highlight=False,
        )
        CONSOLE.print(
            f"on {found.held_back} points held back: TPOT error {found.before.tpot:.1%} -> {found.after.tpot:.1%}, "
            f"TTFT error {found.before.ttft:.1%} -> {found.after.ttft:.1%}",
            highlight=False,
        )
        if out is not None:
            tree = spec.model_dump(mode="json", exclude_unset=True)
            tree.setdefault("engine", {})["scales"] = scales.model_dump(mode="json")
            out.write_text(yaml.safe_dump(tree, sort_keys=False))


_PLAIN = PlanSpec.model_fields["engine"].default.scales


def _loads(text: str) -> list[tuple[int, int, int]]:
    found = []
    for each in text.split(","):
        try:
            clients, isl, osl = (int(part) for part in each.split(":"))
        except ValueError as error:
            raise ConfigError(f"--loads: {each!r}: expected clients:input:output") from error
        found.append((clients, isl, osl))
    return found
