"""Log-probabilities of a prompt, from the worker that computes it to the caller."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest, WorkerDied
from orchestrator.gateway.prompt_logprobs import PIECE_ENTRIES, PromptLogprobs
from tests.fakes.engine import prompt_scores
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, expected, run
from tests.fakes.tokenizer import END_THINK, THINK, front
from workers.messages import output_message

PROMPT = [ord(char) for char in "The baton goes from hand to hand, over forty tokens."]


def packed(token_ids: list[int], count: int) -> worker_pb2.PromptScores:
    scores, message = prompt_scores(token_ids, count), worker_pb2.PromptScores()
    message.token_ids, message.logprobs = scores.token_ids.tobytes(), scores.logprobs.tobytes()
    message.ranks = scores.ranks.tobytes()
    return message


def check_rows(rows: list[pb.TokenLogprobs], prompt: list[int], count: int) -> None:
    """Each place of the prompt has what the fake engine says of it."""
    assert [row.chosen.token_id for row in rows] == prompt
    first, *others = rows
    assert (first.chosen.rank, first.chosen.logprob, len(first.top)) == (0, 0.0, 0)
    scores = prompt_scores(prompt, count)
    for index, row in enumerate(others):
        assert row.chosen.rank == scores.ranks[index]
        assert [top.rank for top in row.top] == list(range(1, count + 1))
        assert [row.chosen.token_id, *(top.token_id for top in row.top)] == scores.token_ids[index].tolist()
        values = np.asarray([row.chosen.logprob, *(top.logprob for top in row.top)], dtype=np.float32)
        assert values.tolist() == scores.logprobs[index].tolist()


@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), st.integers(0, 3))
def test_every_token_comes_once_and_in_order_however_it_is_cut(prompt: list[int], count: int) -> None:
    keeper = PromptLogprobs(front().tokenizer, prompt, wanted=True)
    keeper.take(packed(prompt, count))
    assert keeper.arrived
    assert not keeper.awaited
    keeper.take(packed(prompt, count))  # computed again after a failure: said once
    check_rows([row for piece in keeper.events() for row in piece.tokens], prompt, count)
    assert not keeper.arrived
    assert not list(keeper.events())


def test_a_long_prompt_comes_in_pieces_of_bounded_size() -> None:
    prompt = [index % 200 for index in range(5000)]
    keeper = PromptLogprobs(front().tokenizer, prompt, wanted=True)
    keeper.take(packed(prompt, 4))
    pieces = list(keeper.events())
    assert [piece.first_position for piece in pieces] == [
        sum(len(other.tokens) for other in pieces[:index]) for index in range(len(pieces))
    ]
    assert max(sum(1 + len(row.top) for row in piece.tokens) for piece in pieces) <= PIECE_ENTRIES
    assert sum(len(piece.tokens) for piece in pieces) == 5000


async def scored(cluster: Cluster, request: pb.GenerateRequest) -> tuple[list[pb.TokenLogprobs], list[str], Reply]:
    """What a request brings of its prompt, the kinds of its events in order, and its reply."""
    rows: list[pb.TokenLogprobs] = []
    kinds: list[str] = []
    reply = Reply()
    async for event in cluster.gateway.generate(request):
        kinds.append(event.WhichOneof("event"))
        rows += event.prompt_logprobs.tokens
        reply.take(event)
    return rows, kinds, reply


async def test_a_prompt_alone_is_scored_where_it_is_prefilled(pair: Cluster) -> None:
    rows, kinds, reply = await scored(pair, ask(PROMPT, 0, prompt_logprobs=2))
    check_rows(rows, PROMPT, 2)
    assert kinds == ["admitted", "prompt_logprobs", "delta", "finished"]
    assert reply.token_ids == {0: []}
    assert reply.summary.finish_reason == pb.FINISH_REASON_LENGTH
    assert (reply.summary.usage.prompt_tokens, reply.summary.usage.answer_tokens) == (len(PROMPT), 0)
    (leg,) = pair.engine("prefill-0").started
    assert (leg.max_tokens, leg.transfer_params) == (1, None)
    assert not pair.engine("decode-0").started
    await pair.idle()


async def test_lengths_and_forecasts_do_not_learn_from_prompts_alone(pair: Cluster) -> None:
    for _ in range(20):
        await run(pair, ask(PROMPT, 0, prompt_logprobs=0))
    assert pair.gateway.model.forecast._lengths.quantile(0.9) == 512
    (ends,) = {end.request_class for end in pair.gateway.model.traffic.take().finished}
    assert ends == "/prompt"


@pytest.mark.parametrize(
    "sampling", [{}, {"seed": 3, "temperature": 1.0}, {"presence_penalty": 1.0}], ids=["first", "seed", "penalty"]
)
async def test_with_an_output_the_prefill_worker_scores_and_hands_over(
    pair: Cluster, sampling: dict[str, float]
) -> None:
    await run(pair, ask(PROMPT, 4))  # cached from here on
    rows, kinds, reply = await scored(pair, ask(PROMPT, 6, prompt_logprobs=1, logprobs=1, **sampling))
    check_rows(rows, PROMPT, 1)
    assert reply.token_ids[0] == expected(PROMPT, 6)
    assert kinds.index("prompt_logprobs") < kinds.index("first_token")
    assert reply.summary.usage.cached_tokens == 0
    prefill, decode = pair.engine("prefill-0").started[-1], pair.engine("decode-0").started[-1]
    assert prefill.sampling.prompt_logprobs == 1
    assert not decode.sampling.HasField("prompt_logprobs")
    assert decode.transfer_params is not None
    await pair.idle()


async def test_choices_share_one_scoring(pair: Cluster) -> None:
    rows, _, reply = await scored(pair, ask(PROMPT, 4, prompt_logprobs=0, n=3))
    check_rows(rows, PROMPT, 0)
    assert set(reply.token_ids) == {0, 1, 2}
    legs = [*pair.engine("prefill-0").started, *pair.engine("decode-0").started]
    assert sum(leg.sampling.HasField("prompt_logprobs") for leg in legs) == 1


async def test_a_worker_that_dies_before_it_has_scored_is_replaced() -> None:
    async with cluster_of("prefill-0", "prefill-1", "decode-0") as cluster:
        cluster.engine("prefill-0").fail_next = WorkerDied("gone")
        rows, _, reply = await scored(cluster, ask(PROMPT, 0, prompt_logprobs=1))
        check_rows(rows, PROMPT, 1)
        assert reply.summary.retries == 1
        await cluster.idle()


async def test_a_worker_that_dies_later_scores_nothing_again() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1") as cluster:
        first = cluster.engine("decode-0")
        first.fail_next, first.fail_after = WorkerDied("gone"), 2
        rows, _, reply = await scored(cluster, ask(PROMPT, 8, prompt_logprobs=1))
        check_rows(rows, PROMPT, 1)
        assert reply.token_ids[0] == expected(PROMPT, 8)
        assert reply.summary.retries == 1
        assert sum(leg.sampling.HasField("prompt_logprobs") for leg in cluster.engine("prefill-0").started) == 1


async def test_a_colocated_worker_scores_too() -> None:
    async with cluster_of("colocated-0") as cluster:
        for most in (0, 3):
            rows, _, reply = await scored(cluster, ask(PROMPT, most, prompt_logprobs=1))
            check_rows(rows, PROMPT, 1)
            assert reply.token_ids[0] == expected(PROMPT, most)
        await cluster.idle()


async def test_an_open_trace_of_a_prompt_that_is_scored_stays_open(pair: Cluster) -> None:
    rows, _, _ = await scored(pair, ask([*PROMPT, THINK], 1, prompt_logprobs=0))
    check_rows(rows, [*PROMPT, THINK], 0)
    asked = ask([*PROMPT, THINK], 1, prompt_logprobs=0, reasoning=pb.Reasoning(effort=pb.EFFORT_NONE))
    rows, _, _ = await scored(pair, asked)
    check_rows(rows, [*PROMPT, THINK, END_THINK], 0)


async def test_a_caller_that_resumes_has_them_already(pair: Cluster) -> None:
    request = ask(PROMPT, 6, prompt_logprobs=1)
    request.resume.token_ids.extend(expected(PROMPT, 2))
    rows, _, reply = await scored(pair, request)
    assert not rows
    assert reply.token_ids[0] == expected(PROMPT, 6)[2:]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ask(PROMPT, 0), "sampling.max_tokens"),
        (ask(PROMPT, 0, prompt_logprobs=0, n=2), "sampling.n"),
        (ask(PROMPT, 0, prompt_logprobs=0, min_tokens=1), "sampling.min_tokens"),
        (ask(PROMPT, 1, prompt_logprobs=21), "sampling.prompt_logprobs"),
        (ask(PROMPT * 3, 1, prompt_logprobs=9), "sampling.prompt_logprobs"),
    ],
    ids=["nothing to do", "choices of nothing", "tokens of nothing", "alternatives", "entries"],
)
async def test_what_cannot_be_scored_is_refused(request_: pb.GenerateRequest, field: str) -> None:
    async with cluster_of("prefill-0", "decode-0", more="gateway: {max_prompt_logprobs: 1000}") as cluster:
        with pytest.raises(InvalidRequest) as refused:
            await run(cluster, request_)
        assert refused.value.field == field


def test_an_engines_output_reaches_the_wire_whole() -> None:
    from cluster.engine.protocol import EngineOutput

    output = EngineOutput("leg", [1], prompt_scores=prompt_scores(PROMPT, 2))
    assert output_message(output).prompt_scores == packed(PROMPT, 2)
    assert not output_message(EngineOutput("leg", [1])).HasField("prompt_scores")
