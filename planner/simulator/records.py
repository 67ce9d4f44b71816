"""What is kept of each request: a few numbers in flat arrays, and how to sum them up."""

from __future__ import annotations

import io
from array import array
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Outcome(IntEnum):
    """How a request ended."""

    OPEN = 0
    FINISHED = 1
    REJECTED = 2
    FAILED = 3


_TIMES = ("arrival_s", "placed_s", "first_token_s", "answer_s", "end_s")
_COUNTS = (
    "isl_tokens",
    "output_tokens",
    "reasoning_tokens",
    "hit_tokens",
    "slow_gaps",
    "preemptions",
    "retries",
    "moves",
    "prefill",
    "decode",
    "outcome",
)


class Records:
    """Per-request arrays. Times are seconds of the run, -1 where the thing did not happen.

    ``hit_tokens`` were found cached by the first prefill; ``slow_gaps`` counts gaps over the run's limit;
    ``prefill`` and ``decode`` are the numbers of the workers, -1 for none.
    """

    def __init__(self, size: int) -> None:
        self.columns: dict[str, array[Any]] = {name: array("d", [-1.0]) * size for name in _TIMES}
        self.columns |= {name: array("q", [0]) * size for name in _COUNTS}
        for name in ("prefill", "decode"):
            self.columns[name] = array("q", [-1]) * size
        self.size = size

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """One column as a numpy array (no copy)."""
        return np.frombuffer(self.columns[name], dtype=np.float64 if name in _TIMES else np.int64)

    def done(self) -> npt.NDArray[np.bool_]:
        """Which requests finished."""
        return np.asarray(self["outcome"] == Outcome.FINISHED)

    def ttft_s(self) -> Floats:
        """Time to first token of the finished requests."""
        done = self.done()
        return np.asarray(self["first_token_s"][done] - self["arrival_s"][done])

    def ttfat_s(self) -> Floats:
        """Time to first answer token of the finished requests that had an answer."""
        done = self.done() & (self["answer_s"] >= 0)
        return np.asarray(self["answer_s"][done] - self["arrival_s"][done])

    def e2e_s(self) -> Floats:
        """Time to last token of the finished requests."""
        done = self.done()
        return np.asarray(self["end_s"][done] - self["arrival_s"][done])

    def tpot_s(self) -> Floats:
        """Mean time per output token after the first, of the finished requests with more than one."""
        done = self.done() & (self["output_tokens"] > 1)
        return np.asarray((self["end_s"][done] - self["first_token_s"][done]) / (self["output_tokens"][done] - 1))

    def queue_s(self) -> Floats:
        """Time in the gateway's queue of the requests that were placed."""
        placed = self["placed_s"] >= 0
        return np.asarray(self["placed_s"][placed] - self["arrival_s"][placed])

    def slow_share(self) -> Floats:
        """Share of each finished request's gaps that were over the limit."""
        done = self.done()
        return np.asarray(self["slow_gaps"][done] / np.maximum(1, self["output_tokens"][done] - 1))

    def good(self, *, ttft_s: float, slow_share: float = 0.05, ttfat_s: float | None = None) -> npt.NDArray[np.bool_]:
        """Which of all requests finished and met the objectives.

        First token in time, and at most ``slow_share`` of the gaps over the run's limit, so that the request's own
        ITL percentile met it.
        """
        good = self.done() & (self["first_token_s"] - self["arrival_s"] <= ttft_s)
        good &= self["slow_gaps"] <= slow_share * np.maximum(1, self["output_tokens"] - 1)
        if ttfat_s is not None:
            good &= (self["answer_s"] < 0) | (self["answer_s"] - self["arrival_s"] <= ttfat_s)
        return np.asarray(good)

    def to_csv(self) -> bytes:
        """All columns as CSV, one request a line, numbers in their shortest exact form: same run, same bytes."""
        text = io.StringIO()
        names = (*_TIMES, *_COUNTS)
        text.write("request," + ",".join(names) + "\n")
        columns = [self.columns[name] for name in names]
        for index, row in enumerate(zip(*columns, strict=True)):
            text.write(f"{index}," + ",".join(map(repr, row)) + "\n")
        return text.getvalue().encode()
