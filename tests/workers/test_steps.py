"""Outputs of a step on their way from a worker to the handlers of its legs."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2
from workers.messages import events_message
from workers.worker_link import WorkerLink

fields_of = st.fixed_dictionaries(
    {"token_ids": st.lists(st.integers(0, 200_000), max_size=3)},
    optional={
        "finish_reason": st.sampled_from(["stop", "length"]),
        "cached_tokens": st.integers(0, 64),
        "stop_reason": st.just("7"),
        "logprobs": st.just([inference_pb2.TokenLogprobs(chosen=inference_pb2.Logprob(token_id=1))]),
        "transfer": st.just(worker_pb2.Transfer(bytes=1)),
    },
)


class Link(WorkerLink):
    """One without a connection."""

    def __init__(self) -> None:
        self._handlers, self._token_handlers, self._numbers, self._last_number = {}, {}, {}, 0
        self._commands: Any = self
        self.sent: list[Any] = []

    def put_nowait(self, command: Any) -> None:
        self.sent.append(command.submit)


@given(st.lists(st.tuples(fields_of, st.booleans()), max_size=8))
def test_every_output_comes_to_its_own_leg_whole(rows: list[tuple[dict[str, Any], bool]]) -> None:
    link = Link()
    got: dict[str, Any] = {}
    for index, (_, steps) in enumerate(rows):
        submit = worker_pb2.SubmitLeg(leg_id=f"r/{index}")
        on_token = lambda token, leg_id=submit.leg_id: got.update({leg_id: token})  # noqa: E731
        link.submit(submit, lambda output: got.update({output.leg_id: output}), on_token if steps else None)  # type: ignore[arg-type]
    numbers = {submit.leg_id: submit.leg_number for submit in link.sent}
    assert [bool(number) for number in numbers.values()] == [steps for _, steps in rows]
    outputs = [worker_pb2.LegOutput(leg_id=f"r/{index}", **fields) for index, (fields, _) in enumerate(rows)]
    message = events_message(outputs, numbers)
    link._take(worker_pb2.WorkerEvents.FromString(message.SerializeToString()))
    assert len(got) == len(rows)
    for output, (fields, steps) in zip(outputs, rows, strict=True):
        plain = set(fields) == {"token_ids"} or not any(fields[name] for name in fields if name != "token_ids")
        if steps and plain and len(output.token_ids) == 1:
            assert got[output.leg_id] == output.token_ids[0]
        else:
            assert got[output.leg_id] == output


def test_a_leg_that_has_ended_gets_no_more_tokens() -> None:
    link, got = Link(), list[Any]()
    link.submit(worker_pb2.SubmitLeg(leg_id="r/1"), got.append, got.append)
    end = worker_pb2.LegOutput(leg_id="r/1", finish_reason="stop")
    link._take(worker_pb2.WorkerEvents(outputs=[end]))
    link._take(worker_pb2.WorkerEvents(step=worker_pb2.Step(leg_numbers=[1], token_ids=[9])))
    assert got == [end]


def test_one_legs_fault_leaves_the_others_their_tokens() -> None:
    link, got = Link(), list[int]()
    link.submit(worker_pb2.SubmitLeg(leg_id="r/1"), print, lambda token: [][token])
    link.submit(worker_pb2.SubmitLeg(leg_id="r/2"), print, got.append)
    link._take(worker_pb2.WorkerEvents(step=worker_pb2.Step(leg_numbers=[1, 2], token_ids=[8, 9])))
    assert got == [9]
