from __future__ import annotations

import json

import numpy as np
import pytest

import cluster.errors
from baton.internal.v1 import worker_pb2
from baton.v1.inference_pb2 import Sampling
from cluster.engine.protocol import EngineInfo, EngineLoad, EngineOutput, TokenAlternatives, TransferFigures
from cluster.errors import EngineFailed, ServingError
from workers.messages import engine_leg, error_message, load_message, output_message
from workers.worker_link import leg_error


def leaves(kind: type[ServingError]) -> list[type[ServingError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]


def test_a_submitted_leg_reaches_the_engine_whole() -> None:
    submit = worker_pb2.SubmitLeg(
        leg_id="a",
        token_ids=np.asarray([0, 1, 2**32 - 1], dtype="<u4").tobytes(),
        sampling=Sampling(temperature=0.5),
        max_tokens=7,
        min_tokens=2,
        priority=-3,
        reasoning_end_ids=[4, 5],
        cache_salt="salt",
    )
    leg = engine_leg(submit, {"do_remote_decode": True})
    assert leg.token_ids == [0, 1, 2**32 - 1]
    assert (leg.leg_id, leg.max_tokens, leg.min_tokens, leg.priority, leg.cache_salt) == ("a", 7, 2, -3, "salt")
    assert (leg.reasoning_end_ids, leg.transfer_params, leg.sampling.temperature) == (
        [4, 5],
        {"do_remote_decode": True},
        0.5,
    )
    assert leg.reasoning_ended is None


@pytest.mark.parametrize("ended", [True, False])
def test_where_the_reasoning_ended_is_not_taken_for_unsaid(ended: bool) -> None:
    assert engine_leg(worker_pb2.SubmitLeg(reasoning_ended=ended), None).reasoning_ended is ended


def test_an_output_carries_its_ticket_its_transfer_and_its_logprobs() -> None:
    message = output_message(
        EngineOutput(
            "a",
            [5, 6],
            "length",
            cached_tokens=32,
            logprobs=[TokenAlternatives([(5, -0.5, 1), (9, -1.5, 2)]), TokenAlternatives([(6, -0.25, 1)])],
            transfer_params={"remote_port": 1},
            transfer=TransferFigures(4096, 0.5, 100.0, 3),
        )
    )
    assert (list(message.token_ids), message.finish_reason, message.cached_tokens) == ([5, 6], "length", 32)
    assert json.loads(message.transfer_params_json) == {"remote_port": 1}
    assert (message.transfer.bytes, message.transfer.descriptors) == (4096, 3)
    assert [row.chosen.token_id for row in message.logprobs] == [5, 6]
    assert [[each.token_id for each in row.top] for row in message.logprobs] == [[9], []]


def test_an_output_without_a_ticket_has_none() -> None:
    message = output_message(EngineOutput("a", [5]))
    assert message.transfer_params_json == ""
    assert not message.HasField("transfer")


OURS = [kind for kind in leaves(ServingError) if kind.__module__ == cluster.errors.__name__]
"""Other modules' errors, where a test has imported them, never cross a wire."""


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_an_error_of_a_leg_comes_out_as_the_one_that_went_in(kind: type[ServingError]) -> None:
    assert hasattr(cluster.errors, kind.__name__)
    try:
        error = kind("why it failed")
    except TypeError:  # it needs more than a text, so that a leg that ended with it is the engine's failure
        assert type(leg_error(worker_pb2.LegOutput(error="why", error_kind=kind.__name__), "w")) is EngineFailed
        return
    back = leg_error(error_message("a", error), "decode-0")
    assert type(back) is kind
    assert back.message == "why it failed"


def test_an_error_that_is_not_known_here_is_the_engines() -> None:
    message = worker_pb2.LegOutput(error="odd", error_kind="json")
    assert type(leg_error(message, "decode-0")) is EngineFailed


def test_a_load_names_its_worker_and_incarnation() -> None:
    info = EngineInfo("i-1", 64, 32, 1024, 256)
    load = load_message("decode-0", info, EngineLoad(steps=5, used_blocks=3, preemptions=2), draining=True, hung=False)
    assert (load.worker_id, load.incarnation, load.total_blocks) == ("decode-0", "i-1", 64)
    assert (load.steps, load.used_blocks, load.preemptions, load.draining, load.hung) == (5, 3, 2, True, False)
