"""What belongs to the answer: closing a trace, and the grammar behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import WorkerError
from orchestrator.request.lifecycle import Lifecycle
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, eventually, expected, run
from tests.fakes.tokenizer import END_THINK, THINK

PROMPT = [ord(char) for char in "The baton goes from hand to hand, over forty tokens."]


def closing_ledger(prompt: list[int], thoughts: int, count: int) -> list[int]:
    """Output of a trace that is closed after so many tokens."""
    trace = expected(prompt, thoughts)
    return [*trace, END_THINK, *expected([*prompt, *trace, END_THINK], count - thoughts - 1)]


async def test_a_trace_at_its_budget_is_closed_and_answered_where_it_decodes(pair: Cluster) -> None:
    prompt = [*PROMPT, THINK]
    reply = await run(pair, ask(prompt, 30, reasoning=pb.Reasoning(budget_tokens=5), logprobs=1))
    assert reply.token_ids[0] == closing_ledger(prompt, 5, 30)
    usage = reply.summary.usage
    assert (usage.reasoning_tokens, usage.answer_tokens) == (6, 24)
    assert reply.summary.finish_reason == pb.FINISH_REASON_LENGTH
    assert reply.summary.reasoning_closed
    assert reply.deltas[-1].reasoning_closed
    closing = pair.engine("decode-0").started[-1]
    assert closing.token_ids == [*prompt, *reply.token_ids[0][:6]]
    assert (closing.max_tokens, closing.transfer_params) == (24, None)
    rows = [row.chosen for delta in reply.deltas for row in delta.logprobs]
    assert [row.token_id for row in rows] == reply.token_ids[0]
    assert [row.logprob for row in rows if row.token_id == END_THINK] == [0.0]
    assert reply.summary.retries == 0
    await pair.idle()


@pytest.mark.parametrize(("max_tokens", "thoughts"), [(1, 0), (2, 0), (3, 0), (4, 1), (16, 7), (200, 135)])
async def test_an_answer_always_fits(pair: Cluster, max_tokens: int, thoughts: int) -> None:
    prompt = [*PROMPT, THINK]
    reply = await run(pair, ask(prompt, max_tokens))
    if thoughts:
        assert reply.token_ids[0] == closing_ledger(prompt, thoughts, max_tokens)
    else:
        assert reply.token_ids[0] == expected([*prompt, END_THINK], max_tokens)
    assert reply.summary.usage.answer_tokens >= min(64, max_tokens // 2)
    await pair.idle()


async def test_an_output_as_long_as_asked_for_is_not_closed(pair: Cluster) -> None:
    reply = await run(pair, ask([*PROMPT, THINK], 20, ignore_eos=True))
    assert reply.token_ids[0] == expected([*PROMPT, THINK], 20)
    assert not reply.summary.reasoning_closed


async def test_a_trace_is_closed_at_the_end_of_a_line() -> None:
    prompt = [*PROMPT, THINK]

    def lines(ledger: Sequence[int]) -> int:
        return 10 if len(ledger) % 10 == 0 else 65

    async with cluster_of("prefill-0", "decode-0", rule=lines, closing_window_tokens=16) as cluster:
        reply = await run(cluster, ask(prompt, 200, reasoning=pb.Reasoning(budget_tokens=40)))
        at = reply.token_ids[0].index(END_THINK)
        assert reply.token_ids[0][at - 1] == 10
        assert 24 < at <= 40
        assert reply.summary.usage.reasoning_tokens == at + 1


@pytest.mark.parametrize(("budget", "reported"), [(0, False), (15, True)])
async def test_a_budget_too_small_for_a_line_is_none(budget: int, reported: bool) -> None:
    prompt = [*PROMPT, THINK]
    async with cluster_of("prefill-0", "decode-0", closing_window_tokens=16) as cluster:
        reply = await run(cluster, ask(prompt, 20, reasoning=pb.Reasoning(budget_tokens=budget)))
        assert reply.token_ids[0] == expected([*prompt, END_THINK], 20)
        assert reply.summary.usage.reasoning_tokens == 0
        assert reply.summary.reasoning_closed is reported


async def lose_decode(cluster: Cluster, request: pb.GenerateRequest, made: int) -> Reply:
    """Run a request whose decode worker dies before its leg makes one more than so many tokens."""
    engines = {each: cluster.engine(each) for each in ("decode-0", "decode-1")}
    for engine in engines.values():
        engine.hold(made)
    task = asyncio.create_task(run(cluster, request))
    await eventually(lambda: any(engine.holds[made].reached.is_set() for engine in engines.values()))
    [lost] = [each for each, engine in engines.items() if engine.holds[made].reached.is_set()]
    for engine in engines.values():
        if engine is not engines[lost]:
            engine.holds.clear()
    # What was made is on its way to the gateway; lost before it is there, it would be made again.
    await eventually(lambda: any(leg_tokens(each.life) >= made for each in cluster.gateway.model.runs.values()))
    await cluster.kill(lost)
    return await task


def leg_tokens(life: Lifecycle) -> int:
    """Output tokens that the gateway has of a request's present leg."""
    return len(life.output_ids) - life._leg.generated_tokens if life._leg is not None else 0


async def test_a_worker_lost_behind_the_closed_marker_is_nothing_new() -> None:
    prompt = [*PROMPT, THINK]
    async with cluster_of("prefill-0", "decode-0", "decode-1") as cluster:
        # Only the closing leg makes ten tokens.
        reply = await lose_decode(cluster, ask(prompt, 40, reasoning=pb.Reasoning(budget_tokens=5)), 10)
        assert reply.token_ids[0] == closing_ledger(prompt, 5, 40)
        assert reply.summary.retries == 1


# --- a grammar behind the reasoning ---------------------------------------------------------------------------------

YES = pb.StructuredOutput(choices=pb.StructuredOutput.Choices(values=["yes"]))


def thinker(ledger: Sequence[int]) -> int:
    """Thinks for 8 tokens after a marker, and closes it."""
    if THINK in ledger:
        thought = len(ledger) - 1 - max(i for i, token in enumerate(ledger) if token == THINK)
        if thought == 8:
            return END_THINK
    return 65 + len(ledger) % 26


async def test_a_grammar_begins_with_the_answer_and_the_first_token_is_prefills() -> None:
    prompt = [*PROMPT, THINK]
    async with cluster_of("prefill-0", "decode-0", rule=thinker) as cluster:
        plain = await run(cluster, ask(prompt, 30))
        reply = await run(cluster, ask(prompt, 30, structured_output=YES))
        assert reply.token_ids[0][:9] == plain.token_ids[0][:9]
        assert reply.text[0].endswith("yes")
        assert reply.summary.finish_reason == pb.FINISH_REASON_STOP
        assert not reply.summary.handoff.plain
        assert [leg.reasoning_ended for leg in cluster.engine("decode-0").started][1:] == [False]
        await cluster.idle()


async def test_a_grammar_waits_for_a_trace_that_the_model_opens_itself() -> None:
    def opens(ledger: Sequence[int]) -> int:
        return thinker(ledger) if THINK in ledger else THINK

    async with cluster_of("prefill-0", "decode-0", rule=opens) as cluster:
        reply = await run(cluster, ask(PROMPT, 30, structured_output=YES))
        assert reply.text[0].endswith("yes")
        assert reply.summary.usage.reasoning_tokens == 10
        assert reply.summary.handoff.plain
        await cluster.idle()


async def test_an_answer_without_a_trace_is_begun_again_with_its_grammar() -> None:
    async with cluster_of("prefill-0", "decode-0", rule=thinker, tokens_per_step=3) as cluster:
        for prompt in (PROMPT, [*PROMPT, THINK, 65, END_THINK, *PROMPT]):
            reply = await run(cluster, ask(prompt, 30, structured_output=YES, logprobs=1))
            assert reply.text[0] == "yes"
            assert [row.chosen.token_id for d in reply.deltas for row in d.logprobs] == list(b"yes")
            assert cluster.engine("decode-0").started[-1].reasoning_ended is True
        await cluster.idle()


@pytest.mark.parametrize("budget", [0, 3])
async def test_a_grammar_holds_in_the_closing_leg(pair: Cluster, budget: int) -> None:
    request = ask([*PROMPT, THINK], 30, structured_output=YES, reasoning=pb.Reasoning(budget_tokens=budget))
    reply = await run(pair, request)
    assert reply.text[0].endswith("yes")
    assert reply.token_ids[0][-3:] == list(b"yes")
    assert reply.summary.usage.reasoning_tokens == (budget + 1 if budget else 0)
    assert pair.engine("decode-0").started[-1].reasoning_ended is True
    await pair.idle()


@pytest.mark.parametrize("made", [0, 4, 7, 8, 9])
async def test_a_trace_outlives_its_worker_before_its_answer_begins(made: int) -> None:
    prompt = [*PROMPT, THINK]
    request = ask(prompt, 30, structured_output=YES)
    async with cluster_of("prefill-0", "decode-0", "decode-1", rule=thinker) as cluster:
        whole = await run(cluster, request)
        if made < 9:  # eight thoughts, one of them prefill's, and the marker
            reply = await lose_decode(cluster, request, made)
            assert reply.token_ids[0] == whole.token_ids[0]
            assert reply.summary.retries == 1
        else:
            with pytest.raises(WorkerError):
                await lose_decode(cluster, request, made)


@pytest.mark.parametrize("seed", [-1, -2, 7, (1 << 63) - 1])
async def test_a_seed_is_a_seed_for_every_choice(pair: Cluster, seed: int) -> None:
    await run(pair, ask(PROMPT, 4, seed=seed, temperature=1.0, n=3))
    seeds = [leg.sampling.seed for leg in pair.engine("decode-0").started]
    assert len(set(seeds)) == 3
    assert all(each >= 0 for each in seeds), "vLLM takes -1 for no seed"


async def test_reasoning_that_is_left_out_has_tokens_and_no_text(pair: Cluster) -> None:
    prompt = [*PROMPT, THINK]
    reasoning = pb.Reasoning(budget_tokens=5, exclude=True)
    shown = await run(pair, ask(prompt, 30, reasoning=pb.Reasoning(budget_tokens=5), logprobs=1))
    reply = await run(pair, ask(prompt, 30, reasoning=reasoning, logprobs=1))
    assert reply.token_ids == shown.token_ids
    thoughts = [delta for delta in reply.deltas if delta.phase == pb.PHASE_REASONING]
    assert thoughts
    assert all(delta.token_ids and not delta.text and not delta.logprobs for delta in thoughts)
    answers = [[delta for delta in each.deltas if delta.phase == pb.PHASE_ANSWER] for each in (reply, shown)]
    kept, wanted = (
        ["".join(delta.text for delta in deltas), [row.chosen.token_id for delta in deltas for row in delta.logprobs]]
        for deltas in answers
    )
    assert kept == wanted
    assert reply.finished is not None
    assert reply.finished.usage.thinking_budget_tokens == 5
