"""What a gateway keeps of responses: its bounds, its owners, and prompts that grow at their end alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from transformers import PreTrainedTokenizerFast

from cluster.spec.config import parse
from interface.http.responses.reply import ResponseReply
from interface.http.responses.request import ResponsesCall, read_responses_call
from interface.http.responses.store import ResponseStore, StoredResponse, as_json, response_id_of
from orchestrator.request.chat_template import ChatTemplate
from orchestrator.request.prepare import prepare
from tests.fakes.tokenizer import byte_tokenizer, front
from tests.fakes.turns import Part, events

MAX_RESPONSES, MAX_BYTES, MAX_AGE_S = 3, 100, 50.0


def stored(name: str, tenant: str = "", size: int = 10, now_s: float = 0.0) -> StoredResponse:
    return StoredResponse(tenant, name, b"x" * size, b"", 0, "", now_s)


class StoreMachine(RuleBasedStateMachine):
    """Against a list of everything that was ever put."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ResponseStore(max_responses=MAX_RESPONSES, max_bytes=MAX_BYTES, max_age_s=MAX_AGE_S)
        self.now_s = 0.0
        self.put: dict[str, StoredResponse] = {}

    @rule(
        name=st.sampled_from("abcdef"), tenant=st.sampled_from("xy"), size=st.integers(1, 120), wait_s=st.floats(0, 30)
    )
    def keep(self, name: str, tenant: str, size: int, wait_s: float) -> None:
        self.now_s += wait_s
        made = stored(name, tenant, size, self.now_s)
        self.put.pop(name, None)
        self.put[name] = made
        self.store.put(made, self.now_s)

    @rule(name=st.sampled_from("abcdef"), tenant=st.sampled_from("xy"))
    def remove(self, name: str, tenant: str) -> None:
        was = self.store.get(tenant, name, self.now_s)
        assert self.store.remove(tenant, name, self.now_s) is (was is not None)
        assert self.store.get(tenant, name, self.now_s) is None
        if was is not None:
            del self.put[name]

    @invariant()
    def the_newest_are_kept_within_the_bounds(self) -> None:
        expected: list[StoredResponse] = []
        for made in reversed(self.put.values()):
            young = self.now_s - made.stored_s < MAX_AGE_S
            size = sum(each.size_bytes for each in expected) + made.size_bytes
            if made.size_bytes > MAX_BYTES:
                continue
            if not young or len(expected) == MAX_RESPONSES or size > MAX_BYTES:
                break
            expected.append(made)
        for tenant in "xy":
            for name in "abcdef":
                found = self.store.get(tenant, name, self.now_s)
                if found is not None:
                    assert (found.tenant, found.response_id) == (tenant, name)
                    assert found in expected
        assert len(self.store) <= MAX_RESPONSES
        assert self.store.size_bytes <= MAX_BYTES


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_the_newest_stay() -> None:
    store = ResponseStore(max_responses=2, max_bytes=100, max_age_s=50)
    for name in "abc":
        store.put(stored(name), 0.0)
    assert [store.get("", name, 0.0) is not None for name in "abc"] == [False, True, True]
    store.put(stored("d", size=95), 0.0)
    assert [store.get("", name, 0.0) is not None for name in "bcd"] == [False, False, True]
    assert store.get("", "d", 50.0) is None
    assert (len(store), store.size_bytes) == (0, 0)


def test_a_store_of_nothing_keeps_nothing() -> None:
    store = ResponseStore(max_responses=0, max_bytes=100, max_age_s=50)
    store.put(stored("a"), 0.0)
    assert store.get("", "a", 0.0) is None


# --- conversations --------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning %}({{ m.reasoning }}){% endif %}{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPEC = parse("model: {path: m, served_name: m, max_model_len_tokens: 65536}\npools: {colocated: {replicas: 1}}")
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
TOKENIZER.chat_template = TEMPLATE
FRONT = replace(front(max_model_len_tokens=65536), name="m", template=ChatTemplate(TOKENIZER))
words = st.text(st.characters(categories=["L", "Nd", "P"]), min_size=1, max_size=8)
_turns = st.lists(st.tuples(words, st.none() | words, words), min_size=1, max_size=5)


def prompt_ids(call: ResponsesCall) -> tuple[int, ...]:
    return prepare(call.requests[0], FRONT, SPEC, now_s=0.0).prompt_ids


@settings(max_examples=60, deadline=None)
@given(_turns, st.none() | words)
def test_each_turns_prompt_begins_with_the_last_ones_and_its_answer(
    turns: list[tuple[str, str | None, str]], instructions: str | None
) -> None:
    kept: dict[str, StoredResponse] = {}

    def keep(call: ResponsesCall, made: dict[str, Any]) -> None:
        session = call.requests[0].session
        kept[made["id"]] = StoredResponse("", made["id"], as_json(made), as_json(call.items), 1, session, 0.0)

    previous: str | None = None
    before: tuple[int, ...] = ()
    sessions = set()
    for asked, thought, answer in turns:
        body = {"model": "m", "input": asked, "instructions": instructions, "previous_response_id": previous}
        call = read_responses_call(body, lookup=lambda each: kept.get(response_id_of(each)))
        ids = prompt_ids(call)
        assert ids[: len(before)] == before
        reply = ResponseReply(call, 7, keep)
        parts = (
            [Part("text", (answer,))] if thought is None else [Part("reasoning", (thought,)), Part("text", (answer,))]
        )
        for event in events(parts, "STOP"):
            reply.add(0, event)
        previous = reply.object()["id"]
        written = f"({thought}){answer}" if thought else answer
        before = ids + tuple(written.encode())
        sessions.add(call.requests[0].session)
    assert len(sessions) == 1
