"""Commands that are imported when they are called: `baton status` need not wait for the planner's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

LATER = {
    "doctor": ("doctor.command", "doctor"),
    "bench": ("bench.command", "bench"),
    "plan": ("planner.capacity.commands", "plan_app"),
    "whatif": ("planner.capacity.whatif_command", "whatif"),
    "calibrate": ("planner.capacity.calibrate_command", "calibrate"),
    "simulate": ("planner.simulator.simulate_command", "simulate"),
    "trace": ("planner.simulator.trace_command", "trace"),
}
"""By name: the module, and in it a function or a `typer.Typer` of several commands."""


class Commands(TyperGroup):
    """All commands of `baton`, those of `LATER` included."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of ``--help``."""
        return [*super().list_commands(ctx), *LATER]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, imported where it was not."""
        if cmd_name not in LATER:
            return super().get_command(ctx, cmd_name)
        module, attribute = LATER[cmd_name]
        found = getattr(import_module(module), attribute)
        command: Any
        if isinstance(found, typer.Typer):
            command = typer.main.get_group(found)
        else:
            app = typer.Typer(add_completion=False)
            app.command(cmd_name)(found)
            command = typer.main.get_command(app)
        command.name = cmd_name
        return command
