"""Connections on which no request comes are closed, and those that serve one are not, however long it takes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from interface.http.idle import IdleSweeper

IDLE_S = 10.0


class Connection:
    """As much of aiohttp's as the sweeper uses."""

    def __init__(self) -> None:
        self.closed = False
        self.transport: Any = SimpleNamespace(abort=lambda: None)

    def force_close(self) -> None:
        self.closed = True


class Sweeping(RuleBasedStateMachine):
    """Connections open, serve requests and are swept in any order; a plain account says which must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sweeper = IdleSweeper(IDLE_S)
        self.loop = asyncio.new_event_loop()
        self.now_s = 0.0
        self.connections: list[Connection] = []
        self.requests: dict[Connection, list[tuple[asyncio.Event, asyncio.Task[Any]]]] = {}
        self.seen_idle_s: dict[Connection, float] = {}

    def teardown(self) -> None:
        for requests in self.requests.values():
            for done, task in requests:
                done.set()
                self.loop.run_until_complete(task)
        self.loop.close()

    def open(self) -> list[Connection]:
        return [each for each in self.connections if not each.closed]

    @rule()
    def connect(self) -> None:
        self.connections.append(Connection())

    @rule(pick=st.integers(0, 20))
    def begin(self, pick: int) -> None:
        if not self.open():
            return
        connection = self.open()[pick % len(self.open())]
        done = asyncio.Event()

        async def handler(_: Any) -> Any:
            await done.wait()

        request: Any = SimpleNamespace(protocol=connection)
        task = self.loop.create_task(self.sweeper.middleware(request, handler))
        self.loop.run_until_complete(asyncio.sleep(0))
        self.requests.setdefault(connection, []).append((done, task))

    @rule(pick=st.integers(0, 20))
    def end(self, pick: int) -> None:
        busy = [each for each, requests in self.requests.items() if requests]
        if not busy:
            return
        connection = busy[pick % len(busy)]
        done, task = self.requests[connection].pop()
        done.set()
        self.loop.run_until_complete(task)
        if not self.requests[connection]:
            self.seen_idle_s.pop(connection, None)

    @rule(wait_s=st.sampled_from([0.0, 1.0, 4.0, 9.99, 10.0, 30.0]))
    def sweep(self, wait_s: float) -> None:
        self.now_s += wait_s
        before = self.open()
        self.sweeper.sweep(list(before), self.now_s)
        for connection in before:
            if self.requests.get(connection):
                assert not connection.closed
                self.seen_idle_s.pop(connection, None)
                continue
            since_s = self.seen_idle_s.setdefault(connection, self.now_s)
            assert connection.closed == (self.now_s - since_s >= IDLE_S)

    @invariant()
    def nothing_is_remembered_of_connections_that_are_gone(self) -> None:
        gone = {each for each in self.connections if each.closed}
        assert not gone & self.sweeper._idle_since_s.keys()
        assert set(self.sweeper._busy) == {each for each, requests in self.requests.items() if requests}


Sweeping.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSweeping = Sweeping.TestCase


def test_a_connection_that_left_by_itself_is_forgotten() -> None:
    sweeper, connection = IdleSweeper(IDLE_S), Connection()
    sweeper.sweep([connection], 0.0)
    sweeper.sweep([], 5.0)
    sweeper.sweep([connection], 11.0)
    assert not connection.closed


def test_a_connection_whose_transport_is_gone_breaks_nothing() -> None:
    sweeper, connection = IdleSweeper(IDLE_S), Connection()
    connection.transport = None
    sweeper.sweep([connection], 0.0)
    sweeper.sweep([connection], IDLE_S)
    assert connection.closed


async def test_a_handler_that_fails_leaves_its_connection_idle() -> None:
    sweeper, connection = IdleSweeper(IDLE_S), Connection()

    async def handler(_: Any) -> Any:
        raise ValueError

    request: Any = SimpleNamespace(protocol=connection)
    with pytest.raises(ValueError):
        await sweeper.middleware(request, handler)
    sweeper.sweep([connection], 0.0)
    sweeper.sweep([connection], IDLE_S)
    assert connection.closed


async def test_stopping_before_the_start_is_harmless() -> None:
    await IdleSweeper(IDLE_S).stop()
