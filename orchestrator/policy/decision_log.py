"""Decisions of the autoscaler as JSON lines, each with all that it rests on, so that each can be made again. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic import TypeAdapter

from cluster.errors import ConfigError
from orchestrator.policy.demand import Demand
from orchestrator.policy.scaling_decision import Decision, DecisionSettings, Memory, WorkerRow, decide
from orchestrator.policy.scaling_policy import ScalingAction


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision with its inputs."""

    settings: DecisionSettings
    memory: Memory
    demand: Demand
    workers: tuple[WorkerRow, ...]
    actions: tuple[str, ...]
    reason: str
    after: Memory


@dataclass(frozen=True, slots=True)
class Replayed:
    """One entry, and the same decision made again."""

    line: int
    entry: Entry
    again: Decision

    @property
    def agrees(self) -> bool:
        """Whether actions, reason and memory came out the same."""
        entry, again = self.entry, self.again
        return entry.actions == describe(again.actions) and entry.reason == again.reason and entry.after == again.memory


_ENTRY = TypeAdapter(Entry)


def describe(actions: Sequence[ScalingAction]) -> tuple[str, ...]:
    """Actions as text, in order."""
    return tuple(map(repr, actions))


def entry_line(
    settings: DecisionSettings, memory: Memory, demand: Demand, workers: Sequence[WorkerRow], decision: Decision
) -> str:
    """One line of the log, without the line's end."""
    entry = Entry(
        settings, memory, demand, tuple(workers), describe(decision.actions), decision.reason, decision.memory
    )
    tree: Any = _ENTRY.dump_python(entry, mode="json")
    return json.dumps(tree, separators=(",", ":"))


def replay(lines: Iterable[str]) -> Iterable[Replayed]:
    """Make every decision of a log again. Lines stand by themselves, so a part of a log will do.

    Raises:
        ConfigError: a line is not one of a decision log; the text names it.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _ENTRY.validate_json(line)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"line {number} is not a decision: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from error
        yield Replayed(number, entry, decide(entry.settings, entry.memory, entry.demand, entry.workers))
