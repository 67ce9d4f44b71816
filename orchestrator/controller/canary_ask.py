"""Asks workers the prompts of a canary, alone and behind a handoff, over the same legs as requests of callers.

Every run has a cache salt of its own, so nothing that an earlier one left in a cache is read; the branches of the long
prompt have the salt of the long prompt, so they read its blocks from the cache, handed over ones behind a handoff.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton.internal.v1 import registry_pb2, worker_pb2
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import Role
from orchestrator.policy.canary_probe import TOP_LOGPROBS, Answer, Answers, Position, Prompt, prompts
from orchestrator.policy.canary_record import Run
from workers.legs import Legs


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers by prompt, and the seconds that each worker took."""

    answers: Answers
    cost_s: Mapping[str, float]


def prompts_for(member: registry_pb2.Member) -> tuple[Prompt, ...]:
    """The prompts that suit a worker's engine; a small KV cache holds no long one."""
    most = member.total_blocks * member.block_size_tokens // 2
    return prompts(member.vocab_size, member.block_size_tokens, min(member.max_model_len_tokens, most))


async def ask(
    run: Run, members: Mapping[str, registry_pb2.Member], rpc: InternalRpc | None = None, *, turn: int = 0
) -> Asked:
    """Do a run. Of the short prompts a handoff takes one, by ``turn``; the long one it always takes.

    Raises:
        ServingError: a worker did not answer.
    """
    legs = Legs(members, rpc, name="canary")
    salt = f"canary-{secrets.token_hex(8)}"
    try:
        questions = prompts_for(members[run.worker_id])
        plain = [prompt for prompt in questions if not prompt.prefix_of]
        branches = [prompt for prompt in questions if prompt.prefix_of]
        if run.prefill_id is None:
            return await _alone(legs, run.worker_id, plain, branches, salt)
        chosen = list({prompt.name: prompt for prompt in (plain[turn % len(plain)], plain[-1])}.values())
        return await _behind(legs, run.prefill_id, run.worker_id, chosen, branches, salt)
    finally:
        await legs.close()


async def _alone(legs: Legs, worker_id: str, plain: Sequence[Prompt], branches: Sequence[Prompt], salt: str) -> Asked:
    began_s = time.monotonic()
    # A prefill worker's decode steps serve nobody.
    most = 1 if legs.members[worker_id].role == Role.PREFILL.value else 1 << 30
    answers = {
        **await _all(legs, worker_id, plain, salt, most),
        **await _all(legs, worker_id, branches, salt, most),
    }
    return Asked(answers, {worker_id: time.monotonic() - began_s})


async def _behind(
    legs: Legs, prefill_id: str, decode_id: str, chosen: Sequence[Prompt], branches: Sequence[Prompt], salt: str
) -> Asked:
    began_s = time.monotonic()
    first = await asyncio.gather(
        *(
            legs.run(prefill_id, prompt.token_ids, logprobs=TOP_LOGPROBS, export=True, cache_salt=salt)
            for prompt in chosen
        )
    )
    handed_s = time.monotonic()
    rest = await asyncio.gather(
        *(
            legs.run(
                decode_id,
                (*prompt.token_ids, *output.token_ids),
                max_tokens=prompt.max_tokens - 1,
                logprobs=TOP_LOGPROBS,
                ticket=legs.ticket(prefill_id, output),
                cache_salt=salt,
            )
            for prompt, output in zip(chosen, first, strict=True)
        )
    )
    answers = {
        prompt.name: (*_answer(start), *_answer(end)) for prompt, start, end in zip(chosen, first, rest, strict=True)
    }
    answers |= await _all(legs, decode_id, branches, salt, 1 << 30)
    return Asked(answers, {prefill_id: handed_s - began_s, decode_id: time.monotonic() - handed_s})


async def _all(legs: Legs, worker_id: str, asked: Sequence[Prompt], salt: str, most: int) -> dict[str, Answer]:
    outputs = await asyncio.gather(
        *(
            legs.run(
                worker_id,
                prompt.token_ids,
                max_tokens=min(most, prompt.max_tokens),
                logprobs=TOP_LOGPROBS,
                cache_salt=salt,
            )
            for prompt in asked
        )
    )
    return {prompt.name: _answer(output) for prompt, output in zip(asked, outputs, strict=True)}


def _answer(output: worker_pb2.LegOutput) -> Answer:
    return tuple(
        Position(
            row.chosen.token_id,
            tuple({each.token_id: each.logprob for each in (*row.top, row.chosen)}.items()),
        )
        for row in output.logprobs
    )
