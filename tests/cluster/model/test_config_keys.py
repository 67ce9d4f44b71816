"""Nothing in a config.json is passed over in silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.model.config_keys import WITHOUT_EFFECT, ConfigReader

KEYS = ["hidden_size", "new_attention_trick", "window", "vocab_size", sorted(WITHOUT_EFFECT)[0]]


def reader(config: dict[str, Any], **defaults: Any) -> ConfigReader:
    return ConfigReader({"model_type": "llama", **config}, defaults, "m")


@given(
    there=st.sets(st.sampled_from(KEYS)), read=st.sets(st.sampled_from(KEYS)), ignored=st.sets(st.sampled_from(KEYS))
)
def test_a_key_is_read_without_effect_or_ignored_by_name_or_else_refused(
    there: set[str], read: set[str], ignored: set[str]
) -> None:
    config = reader(dict.fromkeys(there, 1))
    config.skip("model_type")
    for key in read:
        config.get(key)
    left = there - read - ignored - WITHOUT_EFFECT
    if left:
        with pytest.raises(ConfigError, match=min(left)):
            config.check(tuple(ignored))
    else:
        config.check(tuple(ignored))


def test_a_null_says_that_there_is_none_and_absence_leaves_the_default() -> None:
    assert reader({}, window=128).whole("window") == 128
    assert reader({"window": None}, window=128).whole("window") == 0
    assert reader({"window": 64}, window=128).whole("window") == 64


def test_the_first_of_several_names_counts() -> None:
    config = reader({"n_embd": 1, "hidden_size": 2})
    assert config.get("hidden_size", "n_embd") == 2
    config.skip("model_type")
    config.check(())  # both were read


@pytest.mark.parametrize("value", [True, 1.5, "12", -1, [1]])
def test_what_is_no_number_of_things_is_refused_with_its_key(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.config\.window="):
        reader({"window": value}).whole("other", "window")


@pytest.mark.parametrize("value", [None, True, "12", 1.0])
def test_what_has_to_be_there_has_to_be_a_number(value: Any) -> None:
    with pytest.raises(ConfigError, match="hidden_size: missing"):
        reader({"hidden_size": value}).need("hidden_size")


def test_a_list_has_an_entry_a_layer() -> None:
    assert reader({"kinds": ("a", "b")}).names("kinds") == ["a", "b"]
    assert reader({}).names("kinds") == []
    with pytest.raises(ConfigError, match="expected a list"):
        reader({"kinds": "ab"}).names("kinds")


def test_a_long_value_is_cut_in_the_refusal() -> None:
    with pytest.raises(ConfigError) as refused:
        reader({"new_attention_trick": "x" * 500}).check(("model_type",))
    assert len(str(refused.value)) < 400
