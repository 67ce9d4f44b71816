"""One engine in virtual time: continuous batching, chunked prefill, KV blocks and preemption as in vLLM's scheduler.

Every step takes one token of each decoding request first, then pieces of prompts up to the token limit of a step.
Steps that carry prompts are taken one by one; runs of pure decode steps are taken at once (`DecodeBatch`).
The same engine is a prefill, a decode or a colocated worker: its legs make the difference.
"""

from __future__ import annotations

from collections import deque

from cluster.errors import ConfigError, OutOfBlocks
from planner.simulator.batch import DecodeBatch
from planner.simulator.blocks import BlockPool
from planner.simulator.cost import MixedCost, SeparateCost, StepTable
from planner.simulator.engine_owner import EngineOwner
from planner.simulator.kernel import LATE, Kernel
from planner.simulator.leg import Leg, LegState
from planner.simulator.leg_blocks import LegBlocks
from planner.simulator.profile import EngineProfile

__all__ = ["Engine", "EngineOwner", "EngineProfile"]


class Engine:
    """One engine process.

    Args:
        worker_id: Whose engine it is.
        unit_tokens: Prompt tokens to one of a leg's `hashes`; a multiple of the block size.
        slow_gap_s: Gaps longer than this are counted for each request.
    """

    def __init__(
        self,
        kernel: Kernel,
        owner: EngineOwner,
        profile: EngineProfile,
        worker_id: str,
        *,
        unit_tokens: int = 0,
        slow_gap_s: float = 0.05,
        table: StepTable | None = None,
    ) -> None:
        block = profile.block_size_tokens
        if unit_tokens % block:
            raise ConfigError(f"{profile.name}.block_size_tokens={block}: expected a divisor of {unit_tokens}")
        self.worker_id = worker_id
        self.profile = profile
        self.pool = BlockPool(profile.total_blocks, max(1, unit_tokens // block))
        self.blocks = LegBlocks(self.pool, block, unit_tokens)
        self.batch = DecodeBatch(self.pool, table or StepTable(profile.decode), block, slow_gap_s)
        self.unclaimed_blocks = 0
        self.prefilled_tokens = 0
        self.preemptions = 0
        self.busy_s = 0.0
        self.waiting: deque[Leg] = deque()
        self.prefilling: dict[Leg, None] = {}
        self._kernel = kernel
        self._owner = owner
        self._mixed: MixedCost = profile.mixed or SeparateCost(profile.decode, profile.prefill)
        self._block = block
        self._unit_tokens = unit_tokens
        self.exported: dict[Leg, None] = {}
        self._loading: dict[Leg, None] = {}
        self._loaded: dict[Leg, None] = {}
        self._chunks: list[tuple[Leg, int]] = []
        # Kept free when a request is admitted beside others, or it would be preempted a few steps later.
        self._watermark_blocks = profile.total_blocks // 100
        self._pledged_blocks = 0
        self._queued_tokens = 0
        self._wake_id = 0
        self._running = False
        self._starting = False
        self._alive = True

    @property
    def requests(self) -> int:
        """Requests here, whatever their state."""
        return len(self.batch.legs) + len(self.prefilling) + len(self.waiting) + len(self._loading) + len(self._loaded)

    @property
    def reserved_blocks(self) -> int:
        """Blocks reserved for requests and not taken yet."""
        return self.unclaimed_blocks + self._pledged_blocks + self.batch.pledged_blocks

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens given and not prefilled yet."""
        return self._queued_tokens

    def sync(self) -> None:
        """Bring the counts up to the present: steps of a run that are done by now are applied."""
        if self._running and not self._chunks:
            self.batch.apply(self.batch.steps_by(self._kernel.now_s))

    def cached_tokens(self, hashes: tuple[int, ...]) -> int:
        """Leading prompt tokens that are in this engine's cache."""
        return self.pool.matched_units(hashes) * self._unit_tokens

    def submit(self, leg: Leg) -> None:
        """Give the engine a leg."""
        leg.state = LegState.WAITING
        if not leg.remote:
            found = max(self.cached_tokens(leg.hashes), leg.cached_tokens) if leg.hashes or leg.cached_tokens else 0
            leg.queued_tokens = max(1, leg.known_tokens - found)
            self._queued_tokens += leg.queued_tokens
        self.unclaimed_blocks += leg.reserve_blocks
        self.waiting.append(leg)
        self._nudge()

    def loaded(self, leg: Leg) -> None:
        """The KV of a leg has come."""
        if leg.state is LegState.LOADING:
            leg.state = LegState.LOADED
            del self._loading[leg]
            self._loaded[leg] = None
            self._nudge()

    def abort(self, leg: Leg) -> None:
        """Stop a leg and free its blocks, which stay readable for the same request until the space is needed."""
        if leg.state is LegState.OVER:
            return
        if leg.state is LegState.DECODING:
            self.sync()
        self._take_out(leg)
        leg.state = LegState.OVER
        self._nudge()

    def release(self, leg: Leg) -> None:
        """Free what an exported leg held."""
        if leg.state is LegState.EXPORTED:
            leg.state = LegState.OVER
            del self.exported[leg]
            self.blocks.give_back(leg, leg.private_blocks)
            self._nudge()

    def kill(self) -> None:
        """The process is gone: nothing more happens here."""
        self.sync()
        for leg in [*self.batch.legs]:
            self.batch.leave(leg)
        self._alive = False
        self._wake_id += 1

    def _nudge(self) -> None:
        """Something changed: take it up at the next step boundary, or at once (after all else) if idle."""
        if not self._running:
            if not self._starting and self._alive:
                self._starting = True
                self._kernel.at(self._kernel.now_s, self._start, None, LATE)
        elif not self._chunks:
            batch, now_s = self.batch, self._kernel.now_s
            done = batch.steps_by(now_s)
            if batch.end_s(done) < now_s or done == 0:
                done += 1
            if done < batch.left:
                batch.left = done
                self._schedule(batch.end_s(done))

    def _schedule(self, end_s: float) -> None:
        self._wake_id += 1
        self._kernel.at(end_s, self._wake, self._wake_id)

    def _start(self, _: object) -> None:
        self._starting = False
        if self._alive and not self._running:
            self._begin_step()

    def _wake(self, wake_id: int) -> None:
        if wake_id != self._wake_id:
            return
        batch, now_s = self.batch, self._kernel.now_s
        chunks, self._chunks = self._chunks, []
        batch.apply(batch.left)
        batch.start_s = now_s
        self._running = False
        while (done := batch.pop_finished()) is not None:
            self._end_leg(done, batch.leave(done))
        for leg, tokens in chunks:
            if leg.state is LegState.PREFILLING:
                self._end_chunk(leg, tokens)
        if not self._starting:  # else new work came of it, and the step begins once all of this instant is in
            self._begin_step()

    def _begin_step(self) -> None:
        batch, now_s = self.batch, self._kernel.now_s
        preempted = self._preempt_newest()
        self._join_loaded()
        while (
            batch.blocks_for_next_step() > self.pool.free
        ):  # taken by others whose KV has come: the last to join is preempted
            preempted |= self._preempt_newest()
            self._join_loaded()
        if self.waiting and not preempted:
            self._admit()
        if self.prefilling and self._chunk_step(now_s):
            return
        if batch.legs:
            batch.plan(now_s)
            self._running = True
            self.busy_s += batch.end_s(batch.left) - now_s
            self._schedule(batch.end_s(batch.left))

    def _chunk_step(self, now_s: float) -> bool:
        batch = self.batch
        beside = 0 if self.profile.prefill_first else len(batch.legs)
        budget = self.profile.max_num_batched_tokens - beside
        costs: list[tuple[int, int]] = []
        for leg in self.prefilling:
            if budget <= 0:
                break
            tokens = min(budget, self.profile.piece_tokens, leg.known_tokens - leg.computed_tokens)
            self._chunks.append((leg, tokens))
            costs.append((tokens, leg.computed_tokens))
            budget -= tokens
        if not costs:
            return False
        if beside:
            step_s = self._mixed.mixed_step_s(beside, batch.context_tokens, costs)
            batch.begin(now_s, 1, step_s)
        else:
            step_s = self.profile.prefill.chunk_s(costs)
            batch.pause(now_s, step_s)
        self._running = True
        self.busy_s += step_s
        self._schedule(now_s + step_s)
        return True

    def _end_chunk(self, leg: Leg, tokens: int) -> None:
        leg.computed_tokens += tokens
        self.prefilled_tokens += tokens
        self._queued_tokens -= tokens
        leg.queued_tokens -= tokens
        if leg.computed_tokens < leg.known_tokens:
            return
        now_s = self._kernel.now_s
        del self.prefilling[leg]
        context = leg.known_tokens
        self.blocks.publish(leg)
        if leg.last_token_s >= 0:
            gap_s = now_s - leg.last_token_s
            self.batch.gaps.add(gap_s, 1)
            leg.slow_gaps += gap_s > self.batch.slow_gap_s
        elif leg.first_token_s < 0:
            leg.first_token_s = now_s
        leg.last_token_s = now_s
        leg.made_tokens += 1
        if leg.reason_left_tokens + 1 == leg.made_tokens:
            leg.answer_s = now_s
        self._pledged_blocks -= max(0, leg.reserve_blocks - self.blocks.held(leg))
        if leg.made_tokens >= leg.output_tokens:
            self._end_leg(leg, self.blocks.held(leg))
            return
        self.batch.join(leg, context)
        self._owner.leg_prefilled(leg)

    def _end_leg(self, leg: Leg, held_blocks: int) -> None:
        leg.private_blocks = held_blocks - len(leg.pinned) * self.pool.unit_blocks
        if leg.export:
            leg.state = LegState.EXPORTED
            self.exported[leg] = None
        else:
            leg.state = LegState.OVER
            self.blocks.give_back(leg, leg.private_blocks)
        self._owner.leg_over(leg)

    def validate(self) -> None:
        """Check that every block and every reservation is accounted for; for tests.

        Raises:
            AssertionError: one is not.
        """
        self.sync()
        self.pool.validate()
        batch, unit = self.batch, self.pool.unit_blocks
        idle = [*self.prefilling, *self._loading, *self._loaded, *self.exported]
        held = sum(leg.private_blocks for leg in idle)
        held += sum(-(-batch.context_of(leg) // self._block) - len(leg.pinned) * unit for leg in batch.legs)
        assert held == self.pool.private, (held, self.pool.private)
        assert batch.context_tokens == sum(batch.context_of(leg) for leg in batch.legs)
        pledged = sum(max(0, leg.reserve_blocks - -(-batch.context_of(leg) // self._block)) for leg in batch.legs)
        assert pledged == batch.pledged_blocks, (pledged, batch.pledged_blocks)
        pledged = sum(max(0, leg.reserve_blocks - self.blocks.held(leg)) for leg in idle if leg not in self.exported)
        assert pledged == self._pledged_blocks, (pledged, self._pledged_blocks)
        queued = sum(leg.queued_tokens for leg in [*self.waiting, *self.prefilling])
        assert queued == self._queued_tokens, (queued, self._queued_tokens)
        assert self.unclaimed_blocks >= sum(leg.reserve_blocks for leg in self.waiting)
        for leg in batch.legs:
            assert batch.made_of(leg) <= leg.output_tokens
            assert leg.state is LegState.DECODING

    def _preempt_newest(self) -> bool:
        """Preempt the newest until the rest can make a step; whether any was."""
        batch, preempted = self.batch, False
        while batch.blocks_for_next_step() > self.pool.free:
            leg = batch.newest()
            if -(-batch.context_of(leg) // self._block) >= self.pool.used:
                self._refuse(leg)
                continue
            preempted = True
            self.preemptions += 1
            self._take_out(leg)
            leg.preemptions += 1
            leg.last_token_s = batch.start_s
            leg.remote = False
            leg.state = LegState.WAITING
            leg.queued_tokens = leg.known_tokens
            self._queued_tokens += leg.queued_tokens
            self.unclaimed_blocks += leg.reserve_blocks
            self.waiting.appendleft(leg)
        return preempted

    def _join_loaded(self) -> None:
        """Legs whose KV has come join while a slot and the block of their next token are left."""
        for leg in [*self._loaded]:
            if len(self.batch.legs) + len(self.prefilling) >= self.profile.max_num_seqs:
                return
            opens = leg.computed_tokens % self._block == 0
            if self.batch.legs and self.batch.blocks_for_next_step() + opens > self.pool.free:
                return
            del self._loaded[leg]
            self.blocks.publish(leg)
            self._pledged_blocks -= max(0, leg.reserve_blocks - self.blocks.held(leg))
            self.batch.join(leg, leg.computed_tokens)

    def _admit(self) -> None:
        """Take waiting legs in order while a slot, tokens of the step and blocks are left."""
        need = self.batch.blocks_for_next_step()
        if self.batch.legs:
            need += self._watermark_blocks
        budget = self.profile.max_num_batched_tokens - len(self.batch.legs)
        budget -= sum(leg.known_tokens - leg.computed_tokens for leg in self.prefilling)
        slots = self.profile.max_num_seqs - len(self.batch.legs) - len(self.prefilling) - len(self._loaded)
        while self.waiting:
            leg = self.waiting[0]
            if not leg.remote and (budget <= 0 or slots <= 0):
                return
            target = leg.known_tokens - leg.remote
            if -(-target // self._block) > self.pool.total:
                self._refuse(leg)
                continue
            if not self.blocks.take(leg, target, need):
                return
            self.waiting.popleft()
            self._queued_tokens -= leg.queued_tokens
            self.unclaimed_blocks -= leg.reserve_blocks
            self._pledged_blocks += max(0, leg.reserve_blocks - self.blocks.held(leg))
            if leg.remote:
                leg.queued_tokens = 0
                self._load(leg, target)
                continue
            leg.state = LegState.PREFILLING
            leg.queued_tokens = target - leg.computed_tokens
            self._queued_tokens += leg.queued_tokens
            self.prefilling[leg] = None
            budget -= leg.queued_tokens
            slots -= 1

    def _load(self, leg: Leg, target: int) -> None:
        found, leg.computed_tokens = leg.computed_tokens, target
        leg.state = LegState.LOADING
        self._loading[leg] = None
        self._owner.pull(leg, target - found)

    def _take_out(self, leg: Leg) -> None:
        """Remove a leg from wherever it is and free its blocks, remembering what was in them."""
        state = leg.state
        if state is LegState.WAITING:
            self.waiting.remove(leg)
            self.unclaimed_blocks -= leg.reserve_blocks
            self._queued_tokens -= leg.queued_tokens
            return
        if state is LegState.DECODING:
            held = self.batch.leave(leg)
            leg.private_blocks = held - len(leg.pinned) * self.pool.unit_blocks
            full = (leg.known_tokens - 1) // self._block - len(leg.pinned) * self.pool.unit_blocks
            kept = max(0, min(full, leg.private_blocks))
            self.blocks.keep(leg, kept)
            self.blocks.give_back(leg, leg.private_blocks - kept)
            return
        if state in (LegState.PREFILLING, LegState.LOADING, LegState.LOADED):
            where = {LegState.PREFILLING: self.prefilling, LegState.LOADING: self._loading}.get(state, self._loaded)
            del where[leg]
            self._queued_tokens -= leg.queued_tokens
            self._pledged_blocks -= max(0, leg.reserve_blocks - self.blocks.held(leg))
        self.exported.pop(leg, None)
        self.blocks.give_back(leg, leg.private_blocks)

    def _refuse(self, leg: Leg) -> None:
        self._take_out(leg)
        leg.state = LegState.OVER
        error = OutOfBlocks("the request is larger than the engine's KV cache", worker_id=self.worker_id)
        self._owner.leg_failed(leg, error)
