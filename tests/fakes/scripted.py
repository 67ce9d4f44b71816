"""Workers that do what a script says, for the live gateway and for the simulator, and a clock that it sets.

Both stand for the same workers: blocks are reserved, held and given back alike, so that both drivers decide from the
same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from baton.internal.v1 import worker_pb2
from planner.simulator.gaps import GapHistogram
from planner.simulator.kernel import Kernel
from planner.simulator.leg import Leg, LegState

BLOCK_SIZE_TOKENS = 32


def blocks_of(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE_TOKENS)


# --- the simulator's side -----------------------------------------------------------------------------------------


class _Batch:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.gaps = GapHistogram()

    @property
    def start_s(self) -> float:
        return self._kernel.now_s

    def made_of(self, leg: Leg) -> int:
        return leg.made_tokens

    def context_of(self, leg: Leg) -> int:
        return leg.known_tokens


class ScriptedEngine:
    """In place of `planner.simulator.engine.Engine`: legs go on by `progress` alone; KV is there at once."""

    def __init__(
        self, kernel: Kernel, owner: Any, profile: Any, worker_id: str, *, exports: Container[str], **_: Any
    ) -> None:
        self.worker_id = worker_id
        self._moves = exports
        self.unclaimed_blocks = 0
        self.batch = _Batch(kernel)
        self._owner = owner
        self._total_blocks = profile.total_blocks
        self._legs: dict[Leg, None] = {}
        self._exported: dict[Leg, None] = {}

    @property
    def requests(self) -> int:
        return len(self._legs)

    @property
    def held_blocks(self) -> int:
        return sum(blocks_of(leg.known_tokens) for leg in [*self._legs, *self._exported])

    @property
    def pool(self) -> SimpleNamespace:
        return SimpleNamespace(total=self._total_blocks, free=self._total_blocks - self.held_blocks)

    @property
    def reserved_blocks(self) -> int:
        return self.unclaimed_blocks + sum(
            max(0, leg.reserve_blocks - blocks_of(leg.known_tokens)) for leg in self._legs
        )

    @property
    def queued_tokens(self) -> int:
        """Prompts not read yet. A leg that exports for a move reads none."""
        reads = [leg for leg in self._legs if not leg.remote and not leg.made_tokens]
        return sum(leg.input_tokens for leg in reads if leg.leg_id not in self._moves)

    def sync(self) -> None:
        pass

    def cached_tokens(self, hashes: tuple[int, ...]) -> int:
        return 0

    def submit(self, leg: Leg) -> None:
        self._legs[leg] = None
        leg.state = LegState.LOADING if leg.remote else LegState.PREFILLING
        if leg.remote:
            self._owner.pull(leg, leg.input_tokens)

    def loaded(self, leg: Leg) -> None:
        leg.state = LegState.DECODING

    def progress(self, leg: Leg, tokens: int) -> None:
        """Make so many tokens, the leg's last one at most."""
        if leg.state is LegState.PREFILLING and leg.output_tokens > 1:
            leg.made_tokens, leg.state = 1, LegState.DECODING
            self._owner.leg_prefilled(leg)
            return
        leg.made_tokens = min(leg.output_tokens, leg.made_tokens + tokens)
        if not leg.tokens_left:
            del self._legs[leg]
            leg.state = LegState.OVER
            if leg.export:
                self._exported[leg] = None
                leg.state = LegState.EXPORTED
            self._owner.leg_over(leg)

    def abort(self, leg: Leg) -> None:
        self._legs.pop(leg, None)
        leg.state = LegState.OVER

    def release(self, leg: Leg) -> None:
        self._exported.pop(leg, None)

    def kill(self) -> None:
        for leg in self._legs:
            leg.state = LegState.OVER
        self._legs.clear()
        self._exported.clear()


# --- the live gateway's side --------------------------------------------------------------------------------------


@dataclass
class Clock:
    """In place of `time.monotonic`."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class _LiveLeg:
    message: worker_pb2.SubmitLeg
    handler: Callable[[worker_pb2.LegOutput], None]
    made_tokens: int = 0

    @property
    def input_tokens(self) -> int:
        return len(self.message.token_ids) // 4


@dataclass
class ScriptedLink:
    """In place of `workers.worker_link.WorkerLink`: a worker that makes tokens by `progress` alone."""

    worker_id: str
    incarnation: str
    total_blocks: int
    prefill_tokens_per_s: float
    on_load: Callable[[worker_pb2.WorkerLoad], None]
    last_event_s: float
    legs: dict[str, _LiveLeg] = field(default_factory=dict)
    _aborted: list[tuple[str, Callable[[worker_pb2.LegOutput], None]]] = field(default_factory=list)
    _steps: int = 0

    def submit(
        self, message: worker_pb2.SubmitLeg, handler: Callable[[worker_pb2.LegOutput], None], on_token: object = None
    ) -> None:
        copy = worker_pb2.SubmitLeg()
        copy.CopyFrom(message)
        self.legs[message.leg_id] = _LiveLeg(copy, handler)

    def abort(self, leg_id: str) -> None:
        if (leg := self.legs.pop(leg_id, None)) is not None:
            self._aborted.append((leg_id, leg.handler))
            self._report_load()  # at once, as the simulator sees it

    def forget(self, leg_id: str) -> None:
        pass

    def release(self, ticket: Any, now_s: float) -> None:
        pass

    def silence(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def progress(self, leg_id: str, tokens: int, left_tokens: int) -> None:
        """Make so many of the request's ``left_tokens``."""
        leg = self.legs[leg_id]
        most = min(left_tokens, leg.message.max_tokens)
        if not leg.made_tokens and not leg.message.HasField("ticket") and most > 1:
            tokens = 1  # that of the prefill
        tokens = min(tokens, most)
        output = worker_pb2.LegOutput(leg_id=leg_id, token_ids=[65] * tokens)
        leg.made_tokens += tokens
        if tokens == most:
            output.finish_reason = "stop" if most == left_tokens else "length"
            del self.legs[leg_id]
            if leg.message.export:
                output.transfer_params_json = self._params(leg_id, leg.input_tokens)
        leg.handler(output)
        if output.finish_reason:
            self._report_load()

    def report(self, now_s: float) -> None:
        """Say what is over, and the load."""
        self.last_event_s = now_s
        aborted, self._aborted = self._aborted, []
        for leg_id, handler in aborted:
            handler(worker_pb2.LegOutput(leg_id=leg_id, finish_reason="abort"))
        self._report_load()

    def _report_load(self) -> None:
        self._steps += 1
        held = sum(blocks_of(leg.input_tokens + leg.made_tokens) for leg in self.legs.values())
        self.on_load(
            worker_pb2.WorkerLoad(
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                running_requests=len(self.legs),
                used_blocks=held,
                total_blocks=self.total_blocks,
                steps=self._steps,
                prefill_tokens_per_s=self.prefill_tokens_per_s,
            )
        )

    def _params(self, leg_id: str, tokens: int) -> str:
        return json.dumps(
            {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": [list(range(blocks_of(tokens)))],
                "remote_engine_id": self.incarnation,
                "remote_request_id": leg_id,
                "remote_host": "127.0.0.1",
                "remote_port": 5600,
                "tp_size": 1,
                "dcp_size": 1,
                "pp_size": 1,
                "remote_num_tokens": tokens,
                "remote_blocks_expiry_time": None,
                "transfer_mode": "read",
            }
        )
