"""Python arguments as a request, what a client shows, how long it tries, and what it holds of a stream that broke."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from cluster.errors import ConfigError, InvalidRequest
from interface.client.client_request import GenerateOptions, build_request
from interface.client.completion import Completion, event_of
from interface.client.credentials import Credentials
from interface.client.resumption import MAX_PAUSE_S, ROUNDS, Patience, Resumption, addresses_of
from tests.fakes.backend import admitted, delta, finished, first_token

# --- requests -------------------------------------------------------------------------------------------------------

words = st.text(max_size=5)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=4)
SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2, width=32),
    "top_p": st.floats(0, 1, width=32),
    "top_k": st.integers(-1, 100),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "max_tokens": st.integers(0, 1000),
    "n": st.integers(1, 4),
    "stop": st.lists(words, max_size=3),
    "stop_token_ids": ids,
    "ignore_eos": st.booleans(),
    "logprobs": st.integers(0, 5),
    "logit_bias": st.dictionaries(st.integers(0, 100), st.floats(-9, 9, width=32), max_size=3),
    "bad_words": st.lists(words, max_size=2),
    "skip_special_tokens": st.booleans(),
}
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "model": words,
    "priority": st.integers(-9, 9),
    "tenant": words,
    "session": words,
    "request_id": words,
}
options = st.fixed_dictionaries({"prompt": words}, optional=SAMPLING | PLAIN)


def value_of(message: Any, name: str) -> Any:
    value = getattr(message, name)
    if isinstance(value, int | float | str | bool):
        return value
    return dict(value) if hasattr(value, "items") else list(value)


@given(options)
def test_every_option_arrives_and_what_was_not_given_stays_unset(given_: dict[str, Any]) -> None:
    request = build_request(GenerateOptions(**given_))  # type: ignore[typeddict-item]
    assert request.prompt == given_["prompt"]
    for name, value in given_.items():
        if name != "prompt":
            assert value_of(request.sampling if name in SAMPLING else request, name) == value, name
    present = {field.name for field, _ in request.sampling.ListFields()}
    assert present <= given_.keys()


@given(options, st.sets(st.sampled_from(sorted(SAMPLING | PLAIN))))
def test_none_is_as_if_it_were_not_there(given_: dict[str, Any], empty: set[str]) -> None:
    with_none = dict.fromkeys(empty - given_.keys()) | given_
    assert build_request(GenerateOptions(**with_none)) == build_request(GenerateOptions(**given_))  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"prompt": "a", "messages": []},
        {"prompt": "a", "prompt_token_ids": [1]},
        {"prompt": "a", "messages": [], "prompt_token_ids": [1]},
    ],
)
def test_there_is_exactly_one_input(given_: Any) -> None:
    with pytest.raises(InvalidRequest, match="exactly one of prompt, messages and prompt_token_ids"):
        build_request(given_)


def test_a_single_stop_string_is_one_and_not_its_letters() -> None:
    assert list(build_request({"prompt": "a", "stop": "END"}).sampling.stop) == ["END"]  # type: ignore[typeddict-item]


def test_empty_token_ids_are_an_input_too() -> None:
    request = build_request({"prompt_token_ids": []})
    assert request.WhichOneof("input") == "prompt_token_ids"


def test_tools_go_only_with_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    chat: Any = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools}
    choice = {"type": "function", "function": {"name": "f"}}
    request = build_request({**chat, "tool_choice": choice})
    assert [tool.name for tool in request.chat.tools] == ["f"]
    assert request.chat.tool_choice.name == "f"
    for wrong in ({"tools": [{"type": "custom"}]}, {"tool_choice": "always"}, {"tool_choice": {"type": "any"}}):
        with pytest.raises(InvalidRequest):
            build_request({**chat, **wrong})  # type: ignore[typeddict-item]
    with pytest.raises(InvalidRequest, match="tools go with messages") as refused:
        build_request({"prompt": "a", "tools": tools})
    assert refused.value.field == "tools"


@pytest.mark.parametrize("message", [{"role": 1}, {"roles": "user"}, {"role": "user", "content": ["a"]}])
def test_a_message_of_another_form_is_refused(message: Any) -> None:
    with pytest.raises(InvalidRequest, match="an option has the wrong type or value"):
        build_request({"messages": [message]})


def test_what_a_chat_template_and_the_reasoning_are_given() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = build_request(
        {
            "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "", "reasoning": "Hm"}],
            "chat_template_kwargs": {"tone": "dry"},
            "add_generation_prompt": False,
            "continue_final_message": True,
            "reasoning_effort": "max",
            "enable_reasoning": True,
            "exclude_reasoning": True,
        }
    )
    assert [message.content for message in request.chat.messages] == ["a\nb", ""]
    assert request.chat.messages[1].reasoning == "Hm"
    assert json.loads(request.chat.template_variables_json) == {"tone": "dry"}
    assert request.chat.HasField("add_generation_prompt")
    assert not request.chat.add_generation_prompt
    assert request.chat.continue_final_message
    assert request.reasoning == pb.Reasoning(effort=pb.EFFORT_MAX, enabled=True, exclude=True)
    with pytest.raises(InvalidRequest, match="chat_template_kwargs go with messages"):
        build_request({"prompt": "a", "chat_template_kwargs": {"tone": "dry"}})


# --- credentials ----------------------------------------------------------------------------------------------------


class Module:
    """Stands for grpc; keeps which kind of channel was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[tuple[str, Any]]]] = []

    def insecure_channel(self, address: str, options: Any) -> str:
        self.asked.append(("plain", list(options)))
        return address

    def secure_channel(self, address: str, credentials: Any, options: Any) -> str:
        assert isinstance(credentials, grpc.ChannelCredentials)
        self.asked.append(("tls", list(options)))
        return address


@pytest.mark.parametrize(
    ("credentials", "kind"),
    [
        (Credentials(), "plain"),
        (Credentials(api_key="k"), "plain"),
        (Credentials(server_name="gw"), "plain"),
        (Credentials(tls=True), "tls"),
    ],
)
def test_tls_is_used_where_it_is_asked_for(credentials: Credentials, kind: str) -> None:
    module = Module()
    credentials.channel(module, "h:1", [("a", 1)])
    ((found, given_),) = module.asked
    assert found == kind
    assert ("a", 1) in given_


def test_any_file_means_tls_and_a_name_replaces_the_addresss(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    module = Module()
    Credentials(ca_file=ca, server_name="gw").channel(module, "h:1", [])
    assert module.asked == [("tls", [("grpc.ssl_target_name_override", "gw")])]


@pytest.mark.parametrize("name", ["ca_file", "certificate_file", "private_key_file"])
def test_a_missing_file_is_named_by_its_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Credentials(**{name: tmp_path / "missing"}).channel(Module(), "h:1", [])


def test_a_key_is_in_no_repr() -> None:
    assert "s3cret" not in repr(Credentials(api_key="s3cret"))
    assert Credentials().metadata == ()


# --- patience -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6))
def test_every_address_is_tried_in_each_round_and_pauses_grow_between_rounds(addresses: int) -> None:
    patience, pauses = Patience(addresses), []
    while (pause_s := patience.pause_s()) is not None:
        pauses.append(pause_s)
    assert len(pauses) == ROUNDS * addresses
    between = pauses[addresses - 1 :: addresses]
    assert all(pause_s == 0 for i, pause_s in enumerate(pauses) if (i + 1) % addresses)
    assert between == sorted(between)
    assert 0 < between[0] <= between[-1] <= MAX_PAUSE_S


@given(st.integers(1, 4), st.integers(0, 40))
def test_progress_starts_over(addresses: int, failures: int) -> None:
    patience = Patience(addresses)
    for _ in range(failures):
        patience.pause_s()
    patience.progress()
    fresh = Patience(addresses)
    assert [patience.pause_s() for _ in range(9)] == [fresh.pause_s() for _ in range(9)]


@given(st.lists(st.text("abc:1 ", max_size=5), max_size=4))
def test_addresses_in_one_text_are_those_one_by_one(addresses: list[str]) -> None:
    wanted = [each.strip() for each in addresses if each.strip()]
    if not wanted:
        with pytest.raises(InvalidRequest, match="host:port"):
            addresses_of(addresses)
        return
    assert addresses_of(addresses) == addresses_of(",".join(addresses)) == wanted


# --- going on -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3))
def test_a_stream_over_several_gateways_is_the_stream_of_one(parts: list[int], announced: int) -> None:
    """Each gateway admits again and sends a first token again; the caller sees each once, and every text in order."""
    state, seen = Resumption(pb.GenerateRequest(prompt="Hi")), Completion()
    kinds: list[str] = []
    count = 0
    for number, length in enumerate(parts):
        again = state.request()
        assert list(again.resume.token_ids) == list(range(count))
        responses = [admitted(), first_token()][: 2 if number else max(announced, 1)]
        responses += [delta(chr(97 + (count + i) % 26), ids=(count + i,)) for i in range(length)]
        if number == len(parts) - 1:
            responses.append(finished())
        for response in responses:
            if (event := state.take(response)) is not None:
                kinds.append(type(event).__name__)
                seen.add(event)
        count += length
    assert state.done
    assert seen.token_ids == list(range(count))
    assert seen.text == "".join(chr(97 + i % 26) for i in range(count))
    assert kinds.count("Admitted") == 1
    assert kinds.count("FirstToken") <= 1
    assert kinds[-1] == "Finished"


@pytest.mark.parametrize(("n", "before", "after"), [(0, True, True), (1, True, True), (2, True, False)])
def test_several_choices_go_on_only_before_their_first_token(n: int, before: bool, after: bool) -> None:
    state = Resumption(pb.GenerateRequest(prompt="Hi", sampling=pb.Sampling(n=n)))
    state.take(admitted())
    assert state.can_go_on is before
    state.take(delta("a"))
    assert state.can_go_on is after


def test_an_event_of_a_later_version_is_passed_over() -> None:
    assert event_of(pb.GenerateResponse()) is None
    assert Resumption(pb.GenerateRequest()).take(pb.GenerateResponse()) is None
