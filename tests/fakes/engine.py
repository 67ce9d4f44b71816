"""An engine without a model: each token is a function of the whole ledger, so that any continuation can be checked.

What it generates from is its *KV*, not the tokens it was given: after an import the tokens come from the source's
lease. A ticket of another prompt therefore yields other text here too, as it does with a real engine.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.engine.protocol import (
    EngineInfo,
    EngineLeg,
    EngineLoad,
    EngineOutput,
    PromptScores,
    TokenAlternatives,
    TransferFigures,
    WeightSums,
)
from cluster.engine.reasoning_end import ends_within
from cluster.errors import InvalidRequest, TransferBroken, WorkerDied

BLOCK_SIZE_TOKENS = 32
VOCAB_SIZE = 256
KV_BYTES_PER_BLOCK = 4096
_incarnations = itertools.count()

NextToken = Callable[[Sequence[int]], int]


def next_token(ledger: Sequence[int]) -> int:
    """Ids 65 to 90; one token more, less or elsewhere in the ledger changes everything that follows."""
    return 65 + zlib.crc32(b",".join(str(token).encode() for token in ledger)) % 26


def continuation(prompt: Sequence[int], count: int, rule: NextToken = next_token) -> list[int]:
    """What any engine, or any chain of them, must say after ``prompt``."""
    ledger = list(prompt)
    for _ in range(count):
        ledger.append(rule(ledger))
    return ledger[len(prompt) :]


class Network:
    """Where engines find each other's exported blocks, as NIXL's side channel lets them."""

    def __init__(self) -> None:
        self.engines: dict[str, FakeEngine] = {}


@dataclass
class Lease:
    tokens: tuple[int, ...]
    blocks: int


@dataclass
class Hold:
    """A point at which legs wait. ``reached`` says that one does; `open` lets them on."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _opened: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        self._opened.set()

    async def wait(self, wake: asyncio.Event) -> None:
        self.reached.set()
        waits = {asyncio.ensure_future(self._opened.wait()), asyncio.ensure_future(wake.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


@dataclass
class _Leg:
    ledger: list[int]
    blocks: int = 0
    prompt: tuple[str, tuple[int, ...]] = ("", ())
    """Full blocks of its prompt, which legs of the same prompt share."""
    aborted: bool = False
    answers: list[int] = field(default_factory=list)
    """What a grammar still has to say."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class FakeEngine:
    """`cluster.engine.protocol.Engine` with programmable faults.

    ``holds`` maps a point (``prefill``, ``import``, or the number of output tokens) to where legs wait;
    ``fail_next`` is raised by the next ``fail_times`` legs, each after ``fail_after`` tokens; ``deaf`` ignores aborts.
    ``step_s`` is what a step takes, of all legs together.
    """

    def __init__(
        self,
        network: Network | None = None,
        *,
        total_blocks: int = 64,
        rule: NextToken = next_token,
        eos_id: int | None = None,
        tokens_per_step: int = 1,
        step_s: float = 0.0,
    ) -> None:
        self.network = network or Network()
        self.incarnation = f"incarnation-{next(_incarnations)}"
        self.holds: dict[str | int, Hold] = {}
        self.fail_next: Exception | None = None
        self.fail_after = 0
        self.fail_times = 1
        self.deaf = False
        self.shares_prefixes = True
        """Whether a leg finds its prompt in the cache; a hybrid model may not."""
        self.dead = False
        self.leases: dict[str, Lease] = {}
        self.started: list[EngineLeg] = []
        self._total_blocks = total_blocks
        self._rule = rule
        self._eos_id = eos_id
        self._tokens_per_step = tokens_per_step
        self._step_s = step_s
        self._under_way: asyncio.Task[None] | None = None
        self._legs: dict[str, _Leg] = {}
        self._steps = self._prompt_tokens = self._output_tokens = 0
        self.preemptions = 0
        self._exports = itertools.count()
        self._cache: set[tuple[str, tuple[int, ...]]] = set()
        self.weights = ["a", "b", "c"]
        """Checksums of its pieces."""
        self.forgotten = 0

    async def start(self) -> EngineInfo:
        self.network.engines[self.incarnation] = self
        return EngineInfo(self.incarnation, self._total_blocks, BLOCK_SIZE_TOKENS, 2048, VOCAB_SIZE)

    # --- faults ---------------------------------------------------------------------------------------------

    def hold(self, point: str | int) -> Hold:
        return self.holds.setdefault(point, Hold())

    def die(self) -> None:
        self.dead = True
        self.leases.clear()
        self.network.engines.pop(self.incarnation, None)
        for leg in self._legs.values():
            leg.wake.set()

    # --- protocol -------------------------------------------------------------------------------------------

    async def generate(self, leg: EngineLeg) -> AsyncIterator[EngineOutput]:
        self.started.append(leg)
        failure = self.fail_next
        if failure is not None:
            self.fail_times -= 1
            if self.fail_times == 0:
                self.fail_next, self.fail_times = None, 1
        given = leg.sampling
        if given.HasField("temperature") and given.temperature < 0:
            raise InvalidRequest("temperature below 0", leg_id=leg.leg_id)
        full = (len(leg.token_ids) - 1) // BLOCK_SIZE_TOKENS * BLOCK_SIZE_TOKENS
        prompt = (leg.cache_salt, tuple(leg.token_ids[:full]))
        state = _Leg(list(leg.token_ids), self._blocks(len(leg.token_ids)), prompt)
        self._legs[leg.leg_id] = state
        params = leg.transfer_params or {}
        try:
            figures = None
            if params.get("do_remote_prefill"):
                await self._pass("import", leg.leg_id)
                if not state.aborted:
                    figures = self._import(state, params)
                else:
                    await self.release(params)
            await self._pass("prefill", leg.leg_id)
            if failure is not None and self.fail_after == 0:
                raise failure
            scored = given.HasField("prompt_logprobs")
            cached = 0 if scored else self._cached_tokens(leg.cache_salt, leg.token_ids)
            if figures is not None:
                cached = params["remote_num_tokens"]
            self._prompt_tokens += len(leg.token_ids) - cached
            made = 0
            fresh: list[int] = []
            first = True
            while True:
                await self._pass(made, leg.leg_id)
                await self._step()
                if state.aborted:
                    yield EngineOutput(leg.leg_id, fresh, "abort")
                    return
                if made == 0 or len(state.ledger) % BLOCK_SIZE_TOKENS == 0:
                    # A full block is cached from here on, however the leg ends.
                    self._remember(leg.cache_salt, state.ledger)
                token, last = self._next(leg, state, made)
                state.ledger.append(token)
                state.blocks = self._blocks(len(state.ledger))
                fresh.append(token)
                made += 1
                self._output_tokens += 1
                finish, reason = ("stop", "") if last else self._finish(leg, token, made)
                if failure is not None and made == self.fail_after:
                    raise failure
                if not finish and len(fresh) < self._tokens_per_step:
                    continue
                output = EngineOutput(leg.leg_id, fresh, finish, reason)
                if first:
                    output.cached_tokens, output.transfer, first = cached, figures, False
                    if scored:
                        output.prompt_scores = prompt_scores(leg.token_ids, given.prompt_logprobs)
                if given.HasField("logprobs"):
                    output.logprobs = [alternatives(token, given.logprobs) for token in fresh]
                if finish:
                    self._remember(leg.cache_salt, state.ledger)
                    if params.get("do_remote_decode"):
                        output.transfer_params = self._export(leg, state)
                    del self._legs[leg.leg_id]
                    yield output
                    return
                yield output
                fresh = []
        finally:
            self._legs.pop(leg.leg_id, None)

    async def abort(self, leg_id: str) -> None:
        leg = self._legs.get(leg_id)
        if leg is not None and not self.deaf:
            leg.aborted = True
            leg.wake.set()

    async def release(self, transfer_params: dict[str, Any]) -> None:
        source = self.network.engines.get(transfer_params["remote_engine_id"])
        if source is not None:
            source.leases.pop(transfer_params["remote_request_id"], None)

    def load(self) -> EngineLoad:
        return EngineLoad(
            running_requests=len(self._legs),
            used_blocks=self.used_blocks,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            prefill_tokens_per_s=1000.0,
            preemptions=self.preemptions,
        )

    async def check_health(self) -> None:
        if self.dead:
            raise WorkerDied("the fake was killed")

    async def stop(self) -> None:
        self.die()

    async def read_weights(self, first: int, budget_s: float) -> WeightSums:
        return WeightSums("fake", len(self.weights), first, self.weights[first:], 0.0)

    async def forget_kv(self) -> None:
        self._cache.clear()
        self.forgotten += 1

    # --- pieces ---------------------------------------------------------------------------------------------

    @property
    def used_blocks(self) -> int:
        """Blocks of running legs and of leases nobody has read."""
        prompts = [leg.prompt for leg in self._legs.values()]
        shared = sum(len(prompt[1]) for prompt in prompts) - sum(len(prompt[1]) for prompt in set(prompts))
        legs = sum(leg.blocks for leg in self._legs.values()) - shared // BLOCK_SIZE_TOKENS
        return legs + sum(lease.blocks for lease in self.leases.values())

    @staticmethod
    def _blocks(tokens: int) -> int:
        return -(-tokens // BLOCK_SIZE_TOKENS)

    async def _pass(self, point: str | int, leg_id: str) -> None:
        leg = self._legs[leg_id]
        if point in self.holds and not leg.wake.is_set():
            await self.holds[point].wait(leg.wake)
        if self.dead:
            raise WorkerDied("the fake was killed", leg_id=leg_id)

    async def _step(self) -> None:
        """Wait for the engine's next step, which serves all legs; without ``step_s`` each token is a step."""
        if not self._step_s:
            await asyncio.sleep(0)
            self._steps += 1
            return
        if self._under_way is None or self._under_way.done():
            self._steps += 1
            self._under_way = asyncio.create_task(asyncio.sleep(self._step_s))
        await asyncio.shield(self._under_way)

    def _next(self, leg: EngineLeg, state: _Leg, made: int) -> tuple[int, bool]:
        """The next token, and whether a grammar ends with it. The one grammar known is a choice."""
        given = leg.sampling.structured_output
        if given.choices.values and not state.answers:
            begins = leg.reasoning_ended is not False or ends_within(state.ledger, made, leg.reasoning_end_ids)
            state.answers = list(given.choices.values[0].encode()) if begins else []
        if state.answers:
            return state.answers.pop(0), not state.answers
        return self._rule(state.ledger), False

    def _finish(self, leg: EngineLeg, token: int, made: int) -> tuple[str, str]:
        if made >= leg.min_tokens:
            if token in leg.sampling.stop_token_ids:
                return "stop", str(token)
            if token == self._eos_id and not leg.sampling.ignore_eos:
                return "stop", ""
        return ("length", "") if made >= leg.max_tokens else ("", "")

    def _import(self, state: _Leg, params: dict[str, Any]) -> TransferFigures:
        source = self.network.engines.get(params["remote_engine_id"])
        lease = source.leases.pop(params["remote_request_id"], None) if source else None
        if lease is None:
            raise TransferBroken("the source has no such blocks")
        count = params["remote_num_tokens"]
        state.ledger = [*lease.tokens[:count], *state.ledger[count:]]
        return TransferFigures(lease.blocks * KV_BYTES_PER_BLOCK, 0.001, time.time(), lease.blocks)

    def _export(self, leg: EngineLeg, state: _Leg) -> dict[str, Any]:
        name = f"{leg.leg_id}-{next(self._exports):08x}"
        tokens = tuple(state.ledger[:-1])  # the sampled token has no KV yet
        blocks = self._blocks(len(tokens))
        self.leases[name] = Lease(tokens, blocks)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(blocks))],
            "remote_engine_id": self.incarnation,
            "remote_request_id": name,
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": len(tokens),
            "remote_blocks_expiry_time": None,
            "transfer_mode": "read",
        }

    def _remember(self, salt: str, ledger: Sequence[int]) -> None:
        for end in range(BLOCK_SIZE_TOKENS, len(ledger) + 1, BLOCK_SIZE_TOKENS):
            self._cache.add((salt, tuple(ledger[:end])))

    def _cached_tokens(self, salt: str, prompt: Sequence[int]) -> int:
        cached = 0
        if not self.shares_prefixes:
            return cached
        for end in range(BLOCK_SIZE_TOKENS, len(prompt), BLOCK_SIZE_TOKENS):
            if (salt, tuple(prompt[:end])) not in self._cache:
                break
            cached = end
        return cached


def prompt_scores(token_ids: Sequence[int], count: int) -> PromptScores:
    """Log-probabilities that tell from which token and place they come."""
    rows = [(token, *((token + shift) % VOCAB_SIZE for shift in range(1, count + 1))) for token in token_ids[1:]]
    values = [[-place / 16 - column for column in range(count + 1)] for place in range(1, len(rows) + 1)]
    return PromptScores(
        np.asarray(rows, dtype="<u4").reshape(-1, count + 1),
        np.asarray(values, dtype="<f4").reshape(-1, count + 1),
        np.asarray([place % 7 + 1 for place in range(1, len(rows) + 1)], dtype="<u4"),
    )


def alternatives(token: int, count: int) -> TokenAlternatives:
    """Log-probabilities that tell from which token they come."""
    rows = [(token, -token / 1000, 1)]
    rows += [((token + shift) % VOCAB_SIZE, -1.0 - shift, 1 + shift) for shift in range(1, count)]
    return TokenAlternatives(rows)
