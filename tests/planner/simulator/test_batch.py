"""Many steps at once against one step at a time."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.simulator.batch import DecodeBatch
from planner.simulator.blocks import BlockPool
from planner.simulator.cost import AffineCost, StepTable
from planner.simulator.leg import Leg

COST = AffineCost(0.01, 1e-4, 3e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 6), st.sampled_from([1, 4, 16]))
def test_closed_form_equals_step_by_step(seed: int, members: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    pool = BlockPool(10**6)
    batch = DecodeBatch(pool, StepTable(COST), block, slow_gap_s=0.0105)
    contexts = rng.integers(1, 3000, members).tolist()
    lengths = rng.integers(1, 500, members).tolist()
    reserves = rng.integers(0, 3500 // block, members).tolist()
    for index in range(members):
        leg = Leg(str(index), index, contexts[index], lengths[index], True, 0, reserve_blocks=reserves[index])
        leg.last_token_s = 0.0
        pool.take(-(-contexts[index] // block))
        batch.join(leg, contexts[index])
    ends_s: dict[int, float] = {}
    now_s = 0.0
    while batch.legs:
        batch.plan(now_s)
        # Stop on the way sometimes, as a read of the router does.
        while batch.left and rng.random() < 0.5:
            batch.apply(batch.steps_by(batch.start_s + rng.random() * 0.3))
        batch.apply(batch.left)
        now_s = batch.start_s
        while (leg := batch.pop_finished()) is not None:
            ends_s[leg.request] = now_s
            pool.give(batch.leave(leg))
    naive_s, slow = _naive(contexts, lengths)
    assert ends_s.keys() == naive_s.keys()
    assert all(math.isclose(ends_s[key], naive_s[key], rel_tol=1e-9) for key in ends_s)
    assert batch.gaps.total == sum(lengths)
    assert pool.used == 0 and batch.pledged_blocks == 0 and batch.context_tokens == 0
    assert slow == batch.slow_steps


def _naive(contexts: list[int], lengths: list[int]) -> tuple[dict[int, float], int]:
    now_s, slow, ends_s = 0.0, 0, {}
    context, left = dict(enumerate(contexts)), dict(enumerate(lengths))
    while left:
        step_s = COST.step_s(len(left), sum(context[key] for key in left))
        now_s += step_s
        slow += step_s > 0.0105
        for key in list(left):
            context[key] += 1
            left[key] -= 1
            if not left[key]:
                del left[key]
                ends_s[key] = now_s
    return ends_s, slow


def test_a_curved_cost_is_within_0_15_percent() -> None:
    class Soft:
        def step_s(self, batch_size: int, context_tokens: int) -> float:
            return float((0.01**4 + (2e-7 * context_tokens) ** 4) ** 0.25)

    table, worst = StepTable(Soft()), 0.0
    for context in np.unique(np.geomspace(1, 3e6, 20_000).astype(int)).tolist():
        at_low_s, per_token_s, low, high = table.piece(8, context)
        assert low <= context <= high
        exact = Soft().step_s(8, context)
        worst = max(worst, abs(at_low_s + per_token_s * (context - low) - exact) / exact)
    assert worst < 1.5e-3
