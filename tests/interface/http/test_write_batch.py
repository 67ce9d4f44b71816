from __future__ import annotations

import asyncio

from interface.http.write_batch import WriteBatch


class Stream:
    def __init__(self, batch: WriteBatch, log: list[str], name: str) -> None:
        self.batch, self.log, self.name = batch, log, name
        self.waits: list[str] = []

    def soon(self, text: str) -> None:
        if not self.waits:
            self.batch.add(self)
        self.waits.append(text)

    def flush(self) -> None:
        self.log.append(f"{self.name}:{''.join(self.waits)}")
        self.waits = []


async def test_a_stream_writes_once_for_a_turn_of_the_loop_and_not_before_its_end() -> None:
    batch, log = WriteBatch(), list[str]()
    one, other = (Stream(batch, log, name) for name in "ab")
    one.soon("1")
    other.soon("2")
    one.soon("3")
    assert log == []
    await asyncio.sleep(0)
    assert log == ["a:13", "b:2"]
    one.soon("4")
    await asyncio.sleep(0)
    assert log[2:] == ["a:4"]
