"""Mooncake's JSON lines, with what AIPerf and Dynamo add to them for sessions, and Bailian's of the same kind.

``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids`` of prefix blocks (512 tokens in Mooncake's own).
A later turn of a ``session_id`` may lack its ``timestamp``: it comes ``delay``, in the same unit, after the turn before
was answered.
Bailian's lines have ``chat_id``, seconds, and blocks of 16 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from planner.simulator.trace_formats.cells import Clock, seconds, tokens
from planner.simulator.trace_formats.reading import NO_TIMES, Rows, TraceOptions, TraceReading
from planner.simulator.trace_formats.sharegpt import said
from planner.simulator.trace_formats.source import clean, json_objects, shown
from planner.simulator.trace_formats.text import Counter, counter_for

BLOCK_TOKENS = 512
_BLOCKS = (512, 16, 32, 64, 128, 256, 1024, 2048, 4096)
_FIT = 0.99
"""Share of rows whose number of hash ids has to fit a block size: published traces have a few that do not."""
_KNOWN = {
    *("timestamp", "input_length", "output_length", "hash_ids", "session_id", "delay", "type"),
    *("text_input", "messages"),
}
_BAILIAN = {"chat_id", "parent_chat_id", "turn"}


def read(path: Path, options: TraceOptions) -> TraceReading:
    """Read one of Mooncake's kind.

    Raises:
        ConfigError: the file cannot be read or a row is malformed; the text names the line.
    """
    return _Reader(path, options, "mooncake", "ms").read()


def read_bailian(path: Path, options: TraceOptions) -> TraceReading:
    """Read one of Bailian's kind: seconds. Turns of a chat come at their own times.

    Raises:
        ConfigError: as for `read`.
    """
    return _Reader(path, options, "bailian", "s").read()


class _Reader:
    def __init__(self, path: Path, options: TraceOptions, name: str, usual: str) -> None:
        self._path, self._options, self._name = path, options, name
        self._rows, self._clock = Rows(), Clock("timestamp", options.unit, usual)
        self._known = _KNOWN | (_BAILIAN if name == "bailian" else set())
        self._sessions: dict[str, int] = {}
        self._last_s: dict[int, float] = {}
        self._ids: dict[Any, int] = {}
        self._unknown: dict[str, None] = {}
        self._untimed = self._timed = self._both = self._follow = 0
        self._count_text: Counter | None = None

    def read(self) -> TraceReading:
        rows = self._rows
        for where, values in json_objects(self._path):
            try:
                self._take(values, where)
            except KeyError as error:
                raise ConfigError(f"{self._path}: {where}: {error.args[0]} is missing") from error
            except ValueError as error:
                raise ConfigError(f"{self._path}: {where}: {error}") from error
        if self._unknown:
            rows.notes.append(f"keys not used: {', '.join(self._unknown)}")
        if self._both:
            rows.notes.append(f"{self._both:,} turns have a timestamp and a delay: the timestamp was taken")
        if self._count_text is not None:
            rows.notes.append(self._count_text.note)
        if not self._timed and len(rows.at_s):
            more = f"; {len(self._last_s):,} sessions start at once" if self._last_s else ""
            rows.notes.append(f"{NO_TIMES}{more}")
        self._blocks()
        if not self._sessions:
            del rows.session[:], rows.think_s[:]
        return rows.reading(self._name, self._path, self._clock if self._timed else None)

    def _take(self, values: dict[str, Any], where: str) -> None:
        rows = self._rows
        if not self._known.issuperset(values):
            self._unknown |= dict.fromkeys(clean(each) for each in values if each not in self._known)
        if "input_length" not in values and ("text_input" in values or "messages" in values):
            isl = self._text(values)
        else:
            isl = tokens(values["input_length"], "input_length")
        osl = tokens(values["output_length"], "output_length")
        name = values.get("session_id")
        session = -1 if name is None else self._sessions.setdefault(str(name), len(self._sessions))
        at_s, think_s = self._time(values, session, where)
        if session >= 0:
            self._last_s[session] = at_s
        if not rows.add(at_s, isl, osl):
            return
        rows.session.append(session)
        rows.think_s.append(think_s)
        self._hashes(values.get("hash_ids"))

    def _time(self, values: dict[str, Any], session: int, where: str) -> tuple[float, float]:
        """When a request comes at the earliest, and how long after the turn before it (NaN: at its own time)."""
        stamp, delay = values.get("timestamp"), values.get("delay")
        delay_s = 0.0 if delay is None else seconds(delay, "delay", self._clock.unit or "ms", least=0.0)
        if stamp is not None:
            if self._untimed:
                raise ValueError("has a timestamp where sessions before it started without one")
            self._timed += 1
            self._both += delay is not None and session in self._last_s
            return self._clock.seconds(stamp), math.nan
        if session in self._last_s:
            self._follow += 1
            return self._last_s[session] + delay_s, delay_s
        if self._timed:
            missing = "its session's first turn" if session >= 0 else "no session_id"
            raise ValueError(f"timestamp is missing, with {missing}: when does it come?")
        self._untimed += 1
        return delay_s, math.nan

    def _text(self, values: dict[str, Any]) -> int:
        if self._count_text is None:
            self._count_text = counter_for(self._path, self._options)
        count = self._count_text.count
        if "messages" in values:
            before, _ = said(values["messages"], count)
            return before
        if not isinstance(values["text_input"], str):
            raise ValueError(f"text_input: expected text, got {shown(values['text_input'])}")
        return count(values["text_input"])

    def _hashes(self, hashes: Any) -> None:
        """Number the ids, whatever they are: 64-bit numbers with or without sign, or texts."""
        rows, ids = self._rows, self._ids
        if hashes is None:
            hashes = ()
        elif not isinstance(hashes, list):
            raise ValueError(f"hash_ids: expected a list, got {shown(hashes)}")
        rows.unit_counts.append(len(hashes))
        for each in hashes:
            if type(each) is float and each.is_integer():
                each = int(each)
            if type(each) is not int and type(each) is not str:
                raise ValueError(f"hash_ids: expected numbers or texts, got {shown(each)}")
            number = ids.get(each)
            if number is None:
                number = ids[each] = len(ids)
            rows.units.append(number)

    def _blocks(self) -> None:
        """Find how many tokens a hash id stands for, and keep the full blocks of each prompt."""
        rows = self._rows
        if not len(rows.units):
            del rows.unit_counts[:]
            return
        given = self._options.block_tokens
        block = given or fitting_block(rows.isl, rows.unit_counts)
        if block is None:
            del rows.unit_counts[:], rows.units[:]
            rows.notes.append("hash_ids fit no block size: read without shared prefixes; say --block-tokens")
            return
        kept, place = type(rows.units)("q"), 0
        for index, (isl, count) in enumerate(zip(rows.isl, rows.unit_counts, strict=True)):
            full = min(count, isl // block)
            kept.extend(rows.units[place : place + full])
            rows.unit_counts[index] = full
            place += count
        rows.units, rows.unit_tokens = kept, block
        if block != BLOCK_TOKENS and given is None:
            rows.notes.append(f"hash_ids stand for {block} tokens each, by their number")


def fitting_block(isl: Sequence[int], counts: Sequence[int]) -> int | None:
    """Tokens to a hash id by how many prompts have: between full blocks and begun ones. None: no usual size fits.

    Example:
        >>> fitting_block([6758, 7322], [14, 15]), fitting_block([100, 1000], [7, 63]), fitting_block([10], [5])
        (512, 16, None)
    """
    pairs = [(tokens_, count) for tokens_, count in zip(isl, counts, strict=True) if count]
    for block in _BLOCKS:
        fitting = sum(tokens_ // block <= count <= -(-tokens_ // block) for tokens_, count in pairs)
        if pairs and fitting >= _FIT * len(pairs):
            return block
    return None
