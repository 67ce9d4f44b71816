"""The fuzzer itself, short: benchmarks/fuzz.py runs the same code for 100,000 requests (docs/reliability.md)."""

from __future__ import annotations

import aiohttp
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz


@pytest.mark.parametrize("target", ["protocol", "http", "spec", "ticket"])
async def test_every_fuzzed_request_gets_a_proper_answer(target: str) -> None:
    (outcome,) = await fuzz.run([target], 300, seed=1)
    assert outcome.sent == 300
    assert not outcome.faults
    assert len(outcome.answers) > 1  # some were accepted and some were not


@settings(max_examples=150, deadline=None)
@given(
    target=st.sampled_from(["spec", "ticket", "body", "request"]),
    data=st.binary(max_size=200) | st.text(max_size=80).map(str.encode),
)
def test_no_parser_raises_what_it_should_not(target: str, data: bytes) -> None:
    fuzz.one_pure(target, data)


@pytest.mark.parametrize("stream", [False, True])
async def test_four_thousand_million_choices_cost_nothing(stream: bool) -> None:
    """Found by the fuzzer: the reply's choices were allocated before the limit was checked."""
    body = {"model": "fake", "prompt": "x", "n": 2**32 - 1, "max_tokens": 1, "stream": stream}
    async with fuzz.fake_cluster() as (_, url, _), aiohttp.ClientSession(url) as session:
        before = psutil.Process().memory_info().rss
        async with session.post("/v1/completions", json=body) as answer:
            assert answer.status == 400
            assert "n=4294967295" in (await answer.json())["error"]["message"]
        assert psutil.Process().memory_info().rss - before < 100 << 20


def test_a_fault_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("remote_block_ids")

    monkeypatch.setattr(fuzz.tickets, "issue", broken)
    outcome = fuzz.fuzz_pure("ticket", 20, seed=1)
    assert len(outcome.faults) == 20
