"""The decoding batch of one engine, moved on by many steps at once.

While nobody joins or leaves, a batch of ``b`` requests makes ``b`` tokens a step and its context grows by ``b``, so
a step's time is a straight line in the number of steps (`StepTable`) and any number of steps is one sum. Requests
are found again by the step at which something is due to happen to them (a virtual step counter), so that each
costs a few heap operations in all, however long it thinks.
"""

from __future__ import annotations

import heapq
import math

from planner.simulator.blocks import BlockPool
from planner.simulator.cost import StepTable
from planner.simulator.gaps import GapHistogram
from planner.simulator.leg import Leg, LegState

_Due = list[tuple[int, int, Leg]]


class Residues:
    """How many requests open a new block at each step, counted by step modulo the block size.

    Example:
        >>> growth = Residues(4)
        >>> growth.add(1, 1); growth.add(3, 1)
        >>> growth.over(0, 2), growth.over(2, 9)
        (1, 4)
    """

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._counts = [0] * block_size
        self._total = 0

    def add(self, step: int, count: int) -> None:
        """Count a request that opens a block at ``step`` and every block size after; -1 removes it."""
        self._counts[step % self._size] += count
        self._total += count

    def at(self, step: int) -> int:
        """Blocks opened at one step."""
        return self._counts[step % self._size]

    def over(self, step: int, steps: int) -> int:
        """Blocks opened in ``steps`` steps from ``step`` on."""
        rounds, rest = divmod(steps, self._size)
        blocks = rounds * self._total
        if rest:
            low = step % self._size
            high = low + rest
            blocks += sum(self._counts[low:high])
            if high > self._size:
                blocks += sum(self._counts[: high - self._size])
        return blocks

    def steps_within(self, step: int, steps: int, blocks: int) -> int:
        """Most steps, up to ``steps``, that open no more than ``blocks``."""
        if self._total * (steps // self._size + 1) <= blocks:
            return steps
        low, high = 0, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self.over(step, middle) <= blocks:
                low = middle
            else:
                high = middle - 1
        return low


class DecodeBatch:
    """Requests that decode together, and the run of steps they are in.

    A *run* is ``left`` steps from ``start_s`` on, the next taking ``step_s`` seconds and each one after it
    ``slope_s`` more. `apply` moves the batch on by whole steps of the run.
    """

    def __init__(self, pool: BlockPool, table: StepTable, block_size: int, slow_gap_s: float) -> None:
        self.legs: dict[Leg, None] = {}
        self.step = 0
        self.context_tokens = 0
        self.tokens_out = 0
        self.steps_run = 0
        self.pledged_blocks = 0
        self.gaps = GapHistogram()
        self.slow_steps = 0
        self.start_s = 0.0
        self.left = 0
        self.step_s = 0.0
        self.slope_s = 0.0
        self._pool = pool
        self._table = table
        self._block_size = block_size
        self.slow_gap_s = slow_gap_s
        self._growth = Residues(block_size)
        self._pledged_growth = Residues(block_size)
        self._fresh: list[Leg] = []
        self._order = 0
        self._finishing: _Due = []
        self._answering: _Due = []
        self._overrunning: _Due = []
        self._paused_s = 0.0

    # --- members --------------------------------------------------------------------------------------------

    def join(self, leg: Leg, context_tokens: int) -> None:
        """Add a request whose KV covers ``context_tokens``; between runs only. Its blocks are taken already."""
        self._order += 1
        leg.state = LegState.DECODING
        leg.joined_order, leg.joined_step = self._order, self.step
        leg.joined_context, leg.joined_made = context_tokens, leg.made_tokens
        leg.slow_before = -1
        self.legs[leg] = None
        self._fresh.append(leg)
        self.context_tokens += context_tokens
        residue = self.step - context_tokens
        self._growth.add(residue, 1)
        heapq.heappush(self._finishing, (self.step + leg.output_tokens - leg.made_tokens, self._order, leg))
        answer_in = leg.reason_left_tokens + 1 - leg.made_tokens
        if leg.reason_left_tokens >= 0 and answer_in > 0 and leg.answer_s < 0:
            heapq.heappush(self._answering, (self.step + answer_in, self._order, leg))
        overrun_in = leg.reserve_blocks * self._block_size - context_tokens
        leg.overran = overrun_in <= 0
        if not leg.overran:
            self.pledged_blocks += leg.reserve_blocks - -(-context_tokens // self._block_size)
            self._pledged_growth.add(residue, 1)
            heapq.heappush(self._overrunning, (self.step + overrun_in, self._order, leg))

    def leave(self, leg: Leg) -> int:
        """Take a request out, its progress written into the leg; returns the blocks it holds, shared ones too."""
        del self.legs[leg]
        if leg in self._fresh:
            self._fresh.remove(leg)
        context = self.context_of(leg)
        held = -(-context // self._block_size)
        leg.made_tokens = self.made_of(leg)
        if leg.slow_before >= 0:
            leg.slow_gaps += self.slow_steps - leg.slow_before
        residue = leg.joined_step - leg.joined_context
        self.context_tokens -= context
        self._growth.add(residue, -1)
        if not leg.overran:
            self.pledged_blocks -= leg.reserve_blocks - held
            self._pledged_growth.add(residue, -1)
        leg.joined_order = -1
        return held

    def context_of(self, leg: Leg) -> int:
        """Tokens of a member that have KV."""
        return leg.joined_context + self.step - leg.joined_step

    def made_of(self, leg: Leg) -> int:
        """Tokens a member has made in its leg."""
        return leg.joined_made + self.step - leg.joined_step

    def pop_finished(self) -> Leg | None:
        """A member that has made its last token, if there is one; it stays a member until it leaves."""
        due = self._finishing
        while due and due[0][0] <= self.step:
            _, order, leg = heapq.heappop(due)
            if leg.joined_order == order:
                return leg
        return None

    def newest(self) -> Leg:
        """The member that joined last, first to be preempted."""
        return next(reversed(self.legs))

    def blocks_for_next_step(self) -> int:
        """Blocks the next step opens."""
        return self._growth.at(self.step)

    # --- runs -----------------------------------------------------------------------------------------------

    def plan(self, now_s: float) -> None:
        """Begin the longest run: up to the first end of a request, the last free block, or the table's next knot."""
        due = self._finishing
        while due[0][2].joined_order != due[0][1]:
            heapq.heappop(due)
        batch, context = len(self.legs), self.context_tokens
        at_low_s, per_token_s, low, high = self._table.piece(batch, context)
        steps = min(due[0][0] - self.step, -((context - high) // batch))
        steps = self._growth.steps_within(self.step, max(1, steps), self._pool.free)
        if self._paused_s:
            steps = 1  # its gap is longer than those of the steps after it
        self.begin(now_s, max(1, steps), at_low_s + per_token_s * (context - low), per_token_s * batch)

    def begin(self, now_s: float, steps: int, step_s: float, slope_s: float = 0.0) -> None:
        """Begin a run of given length and pace."""
        self.start_s, self.left, self.step_s, self.slope_s = now_s, steps, step_s, slope_s

    def pause(self, now_s: float, pause_s: float) -> None:
        """Make no step for so long: the next token of every member comes so much later."""
        self.start_s, self.left = now_s, 0
        if self.legs:
            self._paused_s += pause_s

    def end_s(self, steps: int) -> float:
        """When ``steps`` more steps of the run are done."""
        return self.start_s + steps * (self.step_s + self.slope_s * (steps - 1) / 2)

    def steps_by(self, now_s: float) -> int:
        """Steps of the run that are done by ``now_s``."""
        elapsed_s = now_s - self.start_s
        if elapsed_s <= 0.0 or not self.left:
            return 0
        linear_s = self.step_s - self.slope_s / 2
        if abs(self.slope_s) * self.left < 1e-9 * self.step_s:
            steps = elapsed_s / self.step_s if self.step_s > 0 else math.inf
        else:
            root = linear_s * linear_s + 2 * self.slope_s * elapsed_s
            steps = (math.sqrt(root) - linear_s) / self.slope_s if root >= 0 else math.inf
        if steps >= self.left:
            return self.left if self.end_s(self.left) <= now_s else self.left - 1
        whole = int(steps)
        if self.end_s(whole + 1) <= now_s:
            whole += 1
        elif self.end_s(whole) > now_s:
            whole -= 1
        return max(0, whole)

    def apply(self, steps: int) -> None:
        """Make ``steps`` steps of the run, at most `left`."""
        if not steps:
            return
        assert steps <= self.left
        members = len(self.legs)
        first_s, last_s = self.step_s, self.step_s + self.slope_s * (steps - 1)
        if members:
            self._count_gaps(members, steps, first_s, last_s)
            self._grow(steps)
            self._mark_answers(steps)
            self.context_tokens += members * steps
            self.tokens_out += members * steps
        self.start_s = self.end_s(steps)
        self.step += steps
        self.steps_run += steps
        self.left -= steps
        self.step_s = last_s + self.slope_s

    def _count_gaps(self, members: int, steps: int, first_s: float, last_s: float) -> None:
        limit_s = self.slow_gap_s
        done_s = self.start_s + first_s
        if self._paused_s:
            first_s, last_s = first_s + self._paused_s, last_s + self._paused_s
            self._paused_s = 0.0
        first_slow = first_s > limit_s
        if self._fresh:
            for leg in self._fresh:
                if leg.last_token_s >= 0:
                    gap_s = done_s - leg.last_token_s
                    self.gaps.add(gap_s, 1)
                    leg.slow_gaps += gap_s > limit_s
                else:
                    leg.first_token_s = done_s
                leg.slow_before = self.slow_steps + first_slow
            self.gaps.add_run(first_s, last_s, members * steps - len(self._fresh))
            self._fresh.clear()
        else:
            self.gaps.add_run(first_s, last_s, members * steps)
        if first_slow == (last_s > limit_s):
            self.slow_steps += steps * first_slow
        else:
            quick = math.floor((limit_s - first_s) / self.slope_s) + 1
            quick = min(max(quick, 0), steps)
            self.slow_steps += quick if first_slow else steps - quick

    def _grow(self, steps: int) -> None:
        self._pool.take(self._growth.over(self.step, steps))
        at, end, due = self.step, self.step + steps, self._overrunning
        while due and due[0][0] < end:
            over, order, leg = heapq.heappop(due)
            if leg.joined_order != order:
                continue
            self.pledged_blocks -= self._pledged_growth.over(at, over - at)
            self._pledged_growth.add(leg.joined_step - leg.joined_context, -1)
            leg.overran = True
            at = over
        self.pledged_blocks -= self._pledged_growth.over(at, end - at)

    def _mark_answers(self, steps: int) -> None:
        due, end = self._answering, self.step + steps
        while due and due[0][0] <= end:
            step, order, leg = heapq.heappop(due)
            if leg.joined_order == order:
                leg.answer_s = self.end_s(step - self.step)
