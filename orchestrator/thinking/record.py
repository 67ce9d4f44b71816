"""What one branch has said: its deltas until they are wanted, its answer, and how sure the model was of its tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from baton.v1 import inference_pb2 as pb
from orchestrator.policy.thinking.state import End, Trace

MERGED_CHARS = 2048
"""Deltas are kept as one up to so much text: a message a token would be hundreds of megabytes for long traces."""
WINDOW_TOKENS = 32
"""Over which the least mean log-probability is taken."""


class TraceRecord:
    """Owns the messages of one branch.

    Args:
        branch: Its number.
        extract: Reads the answer out of its text; None where nobody asks for it.
        keeps_logprobs: Whether the log-probabilities stay in the messages.
    """

    def __init__(
        self, branch: int, extract: Callable[[str], str | None] | None, *, keeps_logprobs: bool = False
    ) -> None:
        self.branch = branch
        self.messages: list[pb.GenerateResponse] = []
        self.finish_reason = pb.FINISH_REASON_UNSPECIFIED
        self.closed = False
        self._extract = extract
        self._keeps_logprobs = keeps_logprobs
        self._answer: list[str] = []
        self._scored = 0
        self._sum = 0.0
        self._window: deque[float] = deque()
        self._window_sum = 0.0
        self._lowest: float | None = None

    @property
    def answer_text(self) -> str:
        """Text of the answer so far."""
        return "".join(self._answer)

    def take(self, message: pb.GenerateResponse) -> None:
        """A message of the branch."""
        if not message.HasField("delta"):
            self.messages.append(message)
            return
        delta = message.delta
        if delta.phase == pb.PHASE_ANSWER:
            self._answer.append(delta.text)
        for row in delta.logprobs:
            self._score(row.chosen.logprob)
        if not self._keeps_logprobs:
            del delta.logprobs[:]
        self._keep(message)
        if delta.finish_reason:
            self.finish_reason, self.closed = delta.finish_reason, delta.reasoning_closed

    def trace(self, tokens: int, end: End | None = None) -> Trace:
        """The branch as it stands."""
        mean = self._sum / self._scored if self._scored else 0.0
        lowest = self._lowest if self._lowest is not None else mean
        answer = None
        if end is End.FINISHED and self._extract is not None:
            answer = self._extract(self.answer_text)
        return Trace(self.branch, tokens, end, answer, mean, lowest)

    def end(self) -> End:
        """How it ended, which it did by itself."""
        whole = self.finish_reason == pb.FINISH_REASON_STOP and not self.closed
        return End.FINISHED if whole else End.CUT

    def _keep(self, message: pb.GenerateResponse) -> None:
        """Keep a delta, as part of the last one where that goes on."""
        delta, last = message.delta, self.messages[-1].delta if self.messages else None
        if last is None or last.phase != delta.phase or len(last.text) > MERGED_CHARS or delta.finish_reason:
            self.messages.append(message)
            return
        last.text += delta.text
        last.token_ids.extend(delta.token_ids)
        last.logprobs.extend(delta.logprobs)

    def _score(self, logprob: float) -> None:
        self._scored += 1
        self._sum += logprob
        self._window.append(logprob)
        self._window_sum += logprob
        if len(self._window) > WINDOW_TOKENS:
            self._window_sum -= self._window.popleft()
        if len(self._window) == WINDOW_TOKENS:
            mean = self._window_sum / WINDOW_TOKENS
            self._lowest = mean if self._lowest is None else min(self._lowest, mean)
