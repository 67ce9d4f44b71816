"""Going on with a generation from what its caller has of it: whether that is exact, and what it is. Pure.

The caller's tokens go after the prompt and are prefilled with it, as the gateway does when a worker dies. That
is exact unless a setting counts or draws over the output, which the engine then takes for prompt. A grammar counts the
answer alone, so a trace may be gone on with.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from baton.v1.inference_pb2 import FinishReason, Resume, Sampling
from cluster.errors import InvalidRequest
from orchestrator.policy.closing import OutputGate
from orchestrator.policy.phases import ReasoningMarkers

FIELD = "resume"


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the caller has: tokens, and the end if it has seen that."""

    token_ids: tuple[int, ...]
    finish_reason: int
    stop_matched: str


def fingerprint(prompt_ids: Sequence[int]) -> int:
    """64 bits that tell one prompt from another; never 0.

    Example:
        >>> fingerprint([1, 2, 3]) == fingerprint((1, 2, 3)), fingerprint([1, 2]) == fingerprint([2, 1])
        (True, False)
    """
    data = array("Q", prompt_ids).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def resumed(
    resume: Resume,
    *,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    max_tokens: int,
    vocab_size: int,
    resumable: bool,
    markers: ReasoningMarkers | None,
) -> Resumed:
    """Check what the caller has.

    Raises:
        InvalidRequest: it is not of this request, or going on from it would not be exact; the text says which setting.
    """
    ids = tuple(resume.token_ids)
    if (sampling.n or 1) > 1:
        raise _refused("a generation with several choices cannot be resumed; ask again, or with n=1")
    bad = next((token for token in ids if token >= vocab_size), None)
    if bad is not None:
        raise _refused(f"token id {bad} is out of the vocabulary (0 to {vocab_size - 1})")
    if len(ids) > max_tokens:
        raise _refused(f"{len(ids)} tokens are more than max_tokens={max_tokens} allows")
    if resume.prompt_fingerprint and resume.prompt_fingerprint != fingerprint(prompt_ids):
        raise _refused("the prompt has other tokens here than where the generation began; ask again")
    if resume.finish_reason not in FinishReason.values():
        raise _refused(f"finish_reason={resume.finish_reason}: unknown")
    ends = resume.finish_reason != FinishReason.FINISH_REASON_UNSPECIFIED
    if ids and not ends:
        if not resumable:
            raise _refused(f"{_counted(sampling)} counts over the output, so going on would not be exact; ask again")
        if sampling.HasField("structured_output"):
            gate = OutputGate(markers, prompt_ids)
            gate.push(ids)
            if gate.answer_began:
                raise _refused("structured_output counts over the answer, which has begun; ask again")
    return Resumed(ids, resume.finish_reason, resume.stop_matched)


def _refused(text: str) -> InvalidRequest:
    return InvalidRequest(f"resume: {text}", field=FIELD)


def _counted(sampling: Sampling) -> str:
    """The setting that stands in the way."""
    if sampling.presence_penalty:
        return "presence_penalty"
    if sampling.frequency_penalty:
        return "frequency_penalty"
    if sampling.bad_words:
        return "bad_words"
    return "structured_output" if sampling.HasField("structured_output") else "seed"
