"""Steady state of a colocated worker under a closed loop: what a load generator with C clients measures.

``TPOT = t_decode(C, context) + (C - 1) / OSL * t_prefill(ISL)``: while one request decodes OSL tokens, each of the
others is prefilled once in its way. ``t_prefill`` is what a prefill adds to a step that decodes anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import PlacementInfeasible
from decode_workers.cost import DecodeCost

CHUNK_TOKENS = 8192
CACHED_REST_TOKENS = 16
"""Tokens of a prompt in the prefix cache that are computed all the same: its last block."""


@dataclass(frozen=True)
class LoadGenerator:
    """How a load generator starts its clients, which measurements rarely record.

    Args:
        name: Where it is used.
        stall_share: Share of the other clients' prefills that fall into a request's decode. 1 when requests are
            spread over time; near 0.5 when all start at once with one length, as the first to decode waits for
            all others and the last for none.
        collision_share: Share of the other clients whose prefill a first token waits for.
        most_running: Requests that the engine runs at a time at most, 0 for no limit.
        repeats_prompts: Prompts come again and are found in the prefix cache.
    """

    name: str
    stall_share: float
    collision_share: float
    most_running: int = 0
    repeats_prompts: bool = False

    @classmethod
    def spread(cls) -> LoadGenerator:
        """Arrivals independent of each other: an open service."""
        return cls("spread", 1.0, 0.0)


@dataclass(frozen=True)
class ClosedLoopEstimate:
    """Means under a closed loop.

    Args:
        tpot_s: Time per output token after the first.
        ttft_s: Time to first token, without waiting for KV.
        decode_step_s: Step without any prefill in it.
        batch_size: Requests that run together; fewer than clients when the KV cache is full.
    """

    tpot_s: float
    ttft_s: float
    decode_step_s: float
    batch_size: int


def prefill_added_s(
    cost: DecodeCost,
    isl_tokens: int,
    batch_size: int,
    context_tokens: int,
    chunk_tokens: int = CHUNK_TOKENS,
    done: int = 0,
) -> float:
    """Seconds that prefilling ``isl_tokens`` adds to steps that decode ``batch_size`` sequences anyway.

    ``done`` of them are found in the prefix cache.
    """
    step_s = cost.step_s(batch_size, context_tokens) if batch_size else 0.0
    total, left = 0.0, isl_tokens - done
    while left > 0:
        piece = min(left, chunk_tokens)
        # Every rank reads a prompt of its own in the same step.
        ranks = cost.roofline.dp
        total += (cost.mixed_step_s(batch_size, context_tokens, ((piece, done),) * ranks) - step_s) / ranks
        done, left = done + piece, left - piece
    return total


def closed_loop(
    cost: DecodeCost,
    clients: int,
    isl_tokens: int,
    osl_tokens: int,
    generator: LoadGenerator | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> ClosedLoopEstimate:
    """Mean TPOT and TTFT of ``clients`` requests kept in flight on one colocated worker.

    Args:
        cost: The worker.
        clients: Requests in flight.
        isl_tokens: Input length of every request.
        osl_tokens: Output length of every request.
        generator: How the clients start; spread over time if ``None``.
        chunk_tokens: Most prompt tokens of one step.
    """
    generator = generator or LoadGenerator.spread()
    mean_context = isl_tokens + 0.5 * osl_tokens
    try:
        held = cost.kv_capacity_tokens(mean_context) / mean_context
    except PlacementInfeasible:
        # A measured deployment did fit, whatever this memory model says of it.
        held = float(clients)
    batch = max(1, round(min(float(clients), held, float(generator.most_running or clients))))
    context = int(batch * mean_context)
    step_s = cost.step_s(batch, context)
    done = max(0, isl_tokens - CACHED_REST_TOKENS) if generator.repeats_prompts else 0
    added_s = prefill_added_s(cost, isl_tokens, batch, context, chunk_tokens, done)
    others = batch - 1
    tpot_s = step_s + generator.stall_share * others / osl_tokens * added_s
    alone_s = prefill_added_s(cost, isl_tokens, others, int(others * mean_context), chunk_tokens, done)
    wait_s = 0.5 * step_s if others else 0.0
    step_now_s = cost.step_s(others, int(others * mean_context)) if others else 0.0
    ttft_s = (
        cost.roofline.engine.first_token_s + wait_s + step_now_s + alone_s * (1.0 + generator.collision_share * others)
    )
    return ClosedLoopEstimate(tpot_s=tpot_s, ttft_s=ttft_s, decode_step_s=step_s, batch_size=batch)
