"""The fuzzer itself, short: benchmarks/fuzz.py runs the same code for 100,000 requests (docs/reliability.md)."""

from __future__ import annotations

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


def test_a_fault_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("remote_block_ids")

    monkeypatch.setattr(fuzz.tickets, "issue", broken)
    outcome = fuzz.fuzz_pure("ticket", 20, seed=1)
    assert len(outcome.faults) == 20
