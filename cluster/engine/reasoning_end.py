"""Where the reasoning ends in a sequence of tokens, and the name under which vLLM finds the parser that asks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

PARSER = "baton"
"""Name of the reasoning parser in vLLM's registry."""
PARSER_MODULE = "cluster.engine.reasoning_parser"
"""Module that registers it; vLLM imports it in the engine core's process."""


def ends_within(token_ids: Sequence[int], last_tokens: int, end_ids: Sequence[int]) -> bool:
    """Whether a marker ends among the last tokens of a sequence; it may have begun before them.

    Example:
        >>> ends_within([5, 8, 9, 6], 2, [8, 9]), ends_within([8, 9, 5, 6], 2, [8, 9])
        (True, False)
    """
    width, end = len(end_ids), list(end_ids)
    if not width:
        return False
    ends = range(max(width, len(token_ids) - last_tokens + 1), len(token_ids) + 1)
    return any(list(token_ids[stop - width : stop]) == end for stop in ends)
