from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from baton.internal.v1 import worker_pb2
from workers.connection import SCORES_BYTES, Connection


def output(leg_id: str, *tokens: int, finish: str = "") -> worker_pb2.LegOutput:
    return worker_pb2.LegOutput(leg_id=leg_id, token_ids=tokens, finish_reason=finish)


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.integers(0, 9))), max_size=60))
def test_no_token_is_lost_or_said_twice_and_a_leg_has_one_entry_a_message(events: list[tuple[str, int] | None]) -> None:
    async def drive() -> None:
        connection = Connection()
        put: dict[str, list[int]] = {}
        got: dict[str, list[int]] = {}
        for event in [*events, None]:
            if event is not None:
                leg_id, token = event
                connection.put(output(leg_id, token))
                put.setdefault(leg_id, []).append(token)
                continue
            taken = await connection.take(0.0)
            assert len({each.leg_id for each in taken}) == len(taken)
            for each in taken:
                got.setdefault(each.leg_id, []).extend(each.token_ids)
        assert got == put

    asyncio.run(drive())


async def test_what_a_merged_entry_ends_with_is_its_last_outputs() -> None:
    connection = Connection()
    first = output("a", 1)
    first.cached_tokens = 32
    connection.put(first)
    connection.put(output("a", 2, finish="stop"))
    (entry,) = await connection.take(1.0)
    assert (list(entry.token_ids), entry.cached_tokens, entry.finish_reason) == ([1, 2], 32, "stop")


async def test_a_report_wakes_the_stream_with_nothing_to_send() -> None:
    connection = Connection()
    waiting = asyncio.create_task(connection.take(60.0))
    await asyncio.sleep(0)
    connection.report()
    assert await asyncio.wait_for(waiting, 20) == []
    assert connection.report_load


async def test_scores_of_many_prompts_do_not_go_in_one_message() -> None:
    connection = Connection()
    for index in range(4):
        message = output(f"leg-{index}", 1, finish="length")
        message.prompt_scores.token_ids = bytes(SCORES_BYTES * 2 // 3)
        connection.put(message)
    connection.put(output("other", 2))
    taken = []
    while messages := await connection.take(0.01):
        assert sum(each.ByteSize() for each in messages) < 2 * SCORES_BYTES
        taken.append([each.leg_id for each in messages])
    assert taken == [["leg-0", "leg-1"], ["leg-2", "leg-3"], ["other"]]
    connection.put(output("other", 3))
    assert [each.leg_id for each in await connection.take(1.0)] == ["other"]
