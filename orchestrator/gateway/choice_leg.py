"""The messages of a choice's beginning: what starts a leg on its worker, and what says so to the caller."""

from __future__ import annotations

import numpy as np

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2 as pb
from orchestrator.gateway.choice_output import ChoiceOutput
from orchestrator.request.lifecycle import Handoff, Lifecycle, StartLeg, State
from orchestrator.request.prepare import PreparedRequest
from orchestrator.request.resume import fingerprint
from orchestrator.request.sampling import choice_seed


def admitted_message(request: PreparedRequest, index: int, workers: pb.Workers, queue_s: float) -> pb.GenerateResponse:
    """What a caller gets when workers are found for a choice."""
    return pb.GenerateResponse(
        admitted=pb.Admitted(
            request_id=request.request_id,
            prompt_tokens=len(request.prompt_ids),
            workers=workers,
            queue_s=queue_s,
            choice=index,
            prompt_fingerprint=fingerprint(request.prompt_ids),
        )
    )


def leg_message(
    action: StartLeg, life: Lifecycle, request: PreparedRequest, index: int, output: ChoiceOutput
) -> worker_pb2.SubmitLeg:
    """What the worker of a leg gets: tokens, limits, and the sampling as it is to be from here on."""
    prefills = life.state is State.PREFILLING
    message = worker_pb2.SubmitLeg(
        leg_id=action.leg_id,
        token_ids=np.asarray(action.token_ids, dtype="<u4").tobytes(),
        max_tokens=action.max_tokens,
        export=action.export,
        priority=request.priority,
    )
    moves = life.prefill_id == action.worker_id and life.moves > 0
    # A draining worker lets what it has go on after a turn, too.
    message.moves_away = moves or (output.turned and not prefills)
    # A leg that reads the KV does not compute the prompt.
    scores = output.prompt_logprobs.awaited and action.ticket is None
    if request.max_tokens == 0 or (prefills and life.handoff is Handoff.PLAIN):
        # Its token is dropped, so neither penalties nor a grammar need to be kept up for it.
        message.sampling.CopyFrom(pb.Sampling(temperature=0.0, ignore_eos=True))
        if scores:
            message.sampling.prompt_logprobs = request.sampling.prompt_logprobs
        return message
    message.sampling.CopyFrom(request.sampling)
    if not scores:
        message.sampling.ClearField("prompt_logprobs")
    if message.sampling.HasField("seed"):
        message.sampling.seed = choice_seed(message.sampling.seed, index)
    message.reasoning_ended, end_ids = output.grammar_state()
    message.reasoning_end_ids.extend(end_ids)
    message.min_tokens = min(action.max_tokens, max(0, request.min_tokens - action.generated_tokens))
    return message
