"""A leg's sampling in vLLM's terms, without vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1.inference_pb2 import Sampling, StructuredOutput
from cluster.engine.protocol import EngineLeg
from cluster.engine.vllm_sampling import FLOATS_AND_COUNTS, grammar_start, sampling_arguments, structured_arguments


def leg(sampling: Sampling | None = None, **fields: Any) -> EngineLeg:
    return EngineLeg("a", [1, 2], sampling or Sampling(), **{"max_tokens": 8, **fields})


@given(st.sets(st.sampled_from(FLOATS_AND_COUNTS)))
def test_what_a_caller_sets_is_passed_even_if_it_is_zero_and_nothing_else(names: set[str]) -> None:
    arguments = sampling_arguments(leg(Sampling(**dict.fromkeys(names, 0))))
    assert {name: arguments[name] for name in FLOATS_AND_COUNTS if name in arguments} == dict.fromkeys(names, 0)


def test_limits_and_lists_reach_the_engine() -> None:
    sampling = Sampling(
        ignore_eos=True, stop_token_ids=[3], logit_bias={4: -1.0}, allowed_token_ids=[5], bad_words=["no"]
    )
    arguments = sampling_arguments(leg(sampling, max_tokens=7, min_tokens=2))
    assert (arguments["max_tokens"], arguments["min_tokens"], arguments["ignore_eos"]) == (7, 2, True)
    assert (arguments["stop_token_ids"], arguments["logit_bias"]) == ([3], {4: -1.0})
    assert (arguments["allowed_token_ids"], arguments["bad_words"]) == ([5], ["no"])
    assert arguments["detokenize"] is False  # the gateway does it


def test_empty_lists_are_no_constraint() -> None:
    """An empty ``allowed_token_ids`` would allow nothing."""
    assert not {"stop_token_ids", "logit_bias", "allowed_token_ids", "bad_words", "extra_args"} & set(
        sampling_arguments(leg())
    )


def test_transfer_parameters_are_the_engines_own_copy() -> None:
    params = {"do_remote_decode": True}
    arguments = sampling_arguments(leg(transfer_params=params))
    arguments["extra_args"]["kv_transfer_params"]["added"] = 1
    assert params == {"do_remote_decode": True}


@pytest.mark.parametrize(
    ("wanted", "arguments"),
    [
        (StructuredOutput(json_schema="{}"), {"json": "{}"}),
        (StructuredOutput(regex="a+"), {"regex": "a+"}),
        (StructuredOutput(grammar="g"), {"grammar": "g"}),
        (StructuredOutput(choices={"values": ["yes", "no"]}), {"choice": ["yes", "no"]}),
        (StructuredOutput(json_object=True), {"json_object": True}),
        (StructuredOutput(structural_tag="{}"), {"structural_tag": "{}"}),
        (StructuredOutput(), None),
        (None, None),
    ],
)
def test_each_kind_of_structure_has_its_argument(
    wanted: StructuredOutput | None, arguments: dict[str, Any] | None
) -> None:
    assert structured_arguments(Sampling(structured_output=wanted)) == arguments


def test_every_kind_of_structure_is_known() -> None:
    kinds = {field.name for field in StructuredOutput.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert kinds == {"json_schema", "regex", "grammar", "choices", "json_object", "structural_tag"}


@pytest.mark.parametrize("ended", [True, False])
def test_a_grammar_begins_where_the_leg_says(ended: bool) -> None:
    assert grammar_start(leg(reasoning_ended=ended, reasoning_end_ids=[8, 9])) == {
        "reasoning_ended": ended,
        "reasoning_parser_kwargs": {"end_ids": [8, 9]},
    }
    assert grammar_start(leg(reasoning_end_ids=[8, 9])) == {}
