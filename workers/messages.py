"""Legs on the wire: a gateway's submission as the engine takes it, the engine's output as a gateway reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2
from cluster.engine.protocol import EngineInfo, EngineLeg, EngineLoad, EngineOutput
from cluster.errors import ServingError

MAX_MESSAGE_BYTES = 64 << 20
"""Between gateway and worker. A 128k-token prompt is 512 KiB; the rest is margin for batches."""
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
"""gRPC options of both ends."""


_TOKENS_ALONE = [worker_pb2.LegOutput.LEG_ID_FIELD_NUMBER, worker_pb2.LegOutput.TOKEN_IDS_FIELD_NUMBER]


def engine_leg(submit: worker_pb2.SubmitLeg, transfer_params: dict[str, Any] | None) -> EngineLeg:
    """A submitted leg for the engine; ``transfer_params`` say whether KV is read, kept, or both."""
    return EngineLeg(
        leg_id=submit.leg_id,
        token_ids=np.frombuffer(submit.token_ids, dtype="<u4").tolist(),
        sampling=submit.sampling,
        max_tokens=submit.max_tokens,
        min_tokens=submit.min_tokens,
        reasoning_ended=submit.reasoning_ended if submit.HasField("reasoning_ended") else None,
        reasoning_end_ids=list(submit.reasoning_end_ids),
        transfer_params=transfer_params,
        priority=submit.priority,
        cache_salt=submit.cache_salt,
    )


def output_message(output: EngineOutput) -> worker_pb2.LegOutput:
    """New tokens of a leg, and with its last ones the unchecked transfer parameters that a ticket is made of."""
    message = worker_pb2.LegOutput(
        leg_id=output.leg_id,
        token_ids=output.token_ids,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        cached_tokens=output.cached_tokens,
    )
    if output.transfer_params is not None:
        message.transfer_params_json = json.dumps(output.transfer_params)
    if output.transfer is not None:
        figures = output.transfer
        message.transfer.CopyFrom(
            worker_pb2.Transfer(
                bytes=figures.kv_bytes,
                duration_s=figures.duration_s,
                start_unix_s=figures.start_unix_s,
                descriptors=figures.descriptors,
            )
        )
    if output.prompt_scores is not None:
        scores = output.prompt_scores
        message.prompt_scores.token_ids = scores.token_ids.tobytes()
        message.prompt_scores.logprobs = scores.logprobs.tobytes()
        message.prompt_scores.ranks = scores.ranks.tobytes()
    for position in output.logprobs:
        chosen, *top = (
            inference_pb2.Logprob(token_id=token, logprob=logprob, rank=rank) for token, logprob, rank in position.rows
        )
        message.logprobs.append(inference_pb2.TokenLogprobs(chosen=chosen, top=top))
    return message


def is_tokens_alone(output: worker_pb2.LegOutput) -> bool:
    """Whether an output has tokens and nothing else."""
    return [field.number for field, _ in output.ListFields()] == _TOKENS_ALONE


def events_message(outputs: Iterable[worker_pb2.LegOutput], numbers: Mapping[str, int]) -> worker_pb2.WorkerEvents:
    """Outputs as one message: single tokens as a step, for a tenth of what a `LegOutput` costs the gateway.

    Args:
        outputs: At most one of each leg.
        numbers: By which the gateway names its legs, if it does.
    """
    message = worker_pb2.WorkerEvents()
    for output in outputs:
        number = numbers.get(output.leg_id, 0)
        if number and len(output.token_ids) == 1 and is_tokens_alone(output):
            message.step.leg_numbers.append(number)
            message.step.token_ids.append(output.token_ids[0])
        else:
            message.outputs.append(output)
    return message


def aborted_message(leg_id: str) -> worker_pb2.LegOutput:
    """The only output of a leg that was aborted before the engine had it."""
    return worker_pb2.LegOutput(leg_id=leg_id, finish_reason="abort")


def error_message(leg_id: str, error: ServingError) -> worker_pb2.LegOutput:
    """The last output of a leg that failed."""
    return worker_pb2.LegOutput(
        leg_id=leg_id, finish_reason="error", error=error.message, error_kind=type(error).__name__
    )


def load_message(
    worker_id: str, info: EngineInfo, load: EngineLoad, *, draining: bool, hung: bool
) -> worker_pb2.WorkerLoad:
    """What a worker reports of itself."""
    return worker_pb2.WorkerLoad(
        worker_id=worker_id,
        incarnation=info.incarnation,
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        used_blocks=load.used_blocks,
        total_blocks=info.total_blocks,
        steps=load.steps,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        draining=draining,
        hung=hung,
        preemptions=load.preemptions,
    )
