"""Chats as ShareGPT stores them: a JSON array, or JSON lines, of ``conversations: [{from, value}]``.

``messages: [{role, content}]``, as chat APIs have them, are read too. Each answer is a request whose prompt is all that
was said before it; the turns of a chat follow each other and share their beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from planner.simulator.trace_formats.reading import NO_TIMES, Rows, TraceOptions, TraceReading
from planner.simulator.trace_formats.source import json_objects, shown
from planner.simulator.trace_formats.text import Counter, counter_for

BLOCK_TOKENS = 64
"""Size of the blocks in which the turns of one chat are said to share their beginning."""
_ANSWERS = {"gpt", "assistant", "chatgpt", "bing", "bard", "model", "ai"}


def read(path: Path, options: TraceOptions) -> TraceReading:
    """Read one.

    Raises:
        ConfigError: the file cannot be read, an item is malformed, or nothing says how to count tokens.
    """
    rows, counter = Rows(), counter_for(path, options)
    parts, chats, next_unit = 0, 0, 0
    for where, values in json_objects(path):
        try:
            requests, ignored = _requests(values, counter)
        except ValueError as error:
            raise ConfigError(f"{path}: {where}: {error}") from error
        parts += ignored
        blocks = 0
        first = True
        for isl, osl in requests:
            if not rows.add(0.0, isl, osl):
                continue
            rows.session.append(chats)
            rows.think_s.append(math.nan if first else 0.0)
            blocks = isl // BLOCK_TOKENS
            rows.unit_counts.append(blocks)
            rows.units.extend(range(next_unit, next_unit + blocks))
            first = False
        next_unit += blocks
        chats += not first
    rows.unit_tokens = BLOCK_TOKENS
    rows.notes.append(counter.note)
    if parts:
        rows.notes.append(f"{parts:,} messages or parts without text (images, tool calls) count nothing")
    rows.notes.append(f"{NO_TIMES}; {chats:,} chats, whose turns follow each other without a pause, start at once")
    return rows.reading("sharegpt", path, None)


def _requests(values: dict[str, Any], counter: Counter) -> tuple[list[tuple[int, int]], int]:
    """Prompt and output of each answer of a chat, and how many messages or parts have no text."""
    turns = values.get("conversations", values.get("messages"))
    if not isinstance(turns, list):
        raise ValueError(f"conversations: expected a list of turns, got {shown(turns)}")
    found, before, ignored = [], 0, 0
    for turn in turns:
        length, without = said([turn], counter.count)
        ignored += without
        if str(turn.get("from", turn.get("role"))).strip().casefold() in _ANSWERS:
            found.append((before, length))
        before += length
    return found, ignored


def said(turns: Any, count: Callable[[str], int]) -> tuple[int, int]:
    """Tokens of some messages, and how many of them or of their parts have no text.

    Raises:
        ValueError: they are no messages.
    """
    if not isinstance(turns, list):
        raise ValueError(f"messages: expected a list of messages, got {shown(turns)}")
    length = ignored = 0
    for turn in turns:
        if not isinstance(turn, dict):
            raise ValueError(f"conversations: expected {{from, value}}, got {shown(turn)}")
        if not isinstance(turn.get("from", turn.get("role")), str):
            raise ValueError(f"conversations: from (or role) is missing or no text in {shown(turn)}")
        for text in _texts(turn.get("value", turn.get("content"))):
            ignored += text is None
            length += count(text) if text is not None else 0
    return length, ignored


def _texts(content: Any) -> Iterator[str | None]:
    """Texts of a message; None for each part that has none."""
    if isinstance(content, str) or content is None:
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            yield text if isinstance(text, str) else None
    else:
        raise ValueError(f"expected text, got {shown(content)}")
