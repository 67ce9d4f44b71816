"""Log-probabilities as vLLM gives them, in the engine protocol's form. Imports no vLLM."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.engine.protocol import PromptScores, TokenAlternatives


def alternatives(position: dict[int, Any], chosen: int) -> TokenAlternatives:
    """Those of one output token; ``position`` maps token ids to vLLM's ``Logprob``."""
    rows = [(token, entry.logprob, entry.rank or 0) for token, entry in position.items()]
    rows.sort(key=lambda row: (row[0] != chosen, row[2]))
    return TokenAlternatives(rows)


def prompt_scores(flat: Any, count: int) -> PromptScores:
    """Those of a prompt, from vLLM's ``FlatLogprobs`` with ``count`` alternatives; its first position is empty."""
    columns = count + 1
    return PromptScores(
        token_ids=np.asarray(flat.token_ids, dtype="<u4").reshape(-1, columns),
        logprobs=np.asarray(flat.logprobs, dtype="<f4").reshape(-1, columns),
        ranks=np.asarray(flat.ranks[::columns], dtype="<u4"),
    )
