"""`baton model`: names, options and exit codes; each command's body is in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interface.cli.cli_options import ControllerOption, ControllerSpecOption, JsonOption, NameOption, SpecOption

model_app = typer.Typer(help="The models that a cluster serves.", no_args_is_help=True)


@model_app.command("add")
def model_add(
    model: Annotated[str, typer.Argument(help="Name; workers are named after it.")],
    entry: Annotated[Path, typer.Argument(help="YAML file with what stands below a name in `models:` of a spec.")],
    controller: ControllerOption = None,
    file: ControllerSpecOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve one more model in a cluster that runs; returns once its workers serve.

    Write it into the spec, too: a controller that starts again has the models of its spec.
    """
    from interface.cli import portfolio_command

    portfolio_command.add(model, entry, name, controller, file, as_json=as_json)


@model_app.command("remove")
def model_remove(
    model: Annotated[str, typer.Argument(help="Name that callers ask for.")],
    timeout_s: Annotated[
        float | None,
        typer.Option(help="Seconds until requests that run are ended; by default the spec's.", min=1),
    ] = None,
    controller: ControllerOption = None,
    file: ControllerSpecOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop serving a model: new requests are refused, those that run end, then its workers stop."""
    from interface.cli import portfolio_command

    portfolio_command.remove(model, name, controller, file, timeout_s=timeout_s, as_json=as_json)


@model_app.command("list")
def model_list(
    controller: ControllerOption = None,
    file: ControllerSpecOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models of a cluster that runs, with their ready workers."""
    from interface.cli import portfolio_command

    portfolio_command.list_models(name, controller, file, as_json=as_json)


@model_app.command("check")
def model_check(
    file: SpecOption = None,
    controller: ControllerOption = None,
    name: NameOption = None,
    model: Annotated[str | None, typer.Option(help="Model, where the spec has several.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write right answers to fixed prompts next to the model; clusters judge their workers by them (the canary).

    A plain float32 forward pass where the model is small enough, else what at least three workers of a running cluster
    agree on.
    """
    from interface.cli import model_command

    model_command.check(file, controller, name, model=model, as_json=as_json)
