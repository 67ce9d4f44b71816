import json
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.model.known_models import known_model, known_models
from cluster.model.model_config import read_config
from cluster.model.precision import Precision

# Totals in billions as the publishers state them.
PUBLISHED = {
    "Llama-3.1-8B": (8.03, 0.005),
    "Llama-3.1-70B": (70.6, 0.005),
    "Llama-3.1-405B": (405.9, 0.005),
    "Qwen3-8B": (8.2, 0.01),
    "Qwen3-32B": (32.8, 0.01),
    "Qwen3-30B-A3B": (30.5, 0.01),
    "Qwen3-235B-A22B": (235.0, 0.01),
    "DeepSeek-R1": (671.0, 0.01),
    "gpt-oss-120b": (116.8, 0.01),
    "gpt-oss-20b": (20.9, 0.01),
    "Mixtral-8x7B": (46.7, 0.01),
}
ACTIVE = {"Qwen3-30B-A3B": 3.3, "Qwen3-235B-A22B": 22.0, "DeepSeek-R1": 37.0, "gpt-oss-120b": 5.1, "Mixtral-8x7B": 12.9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_match_what_is_published(name: str) -> None:
    billions, tolerance = PUBLISHED[name]
    assert known_model(name).weights.params / 1e9 == pytest.approx(billions, rel=tolerance)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_match_what_is_published(name: str) -> None:
    assert known_model(name).weights.active_params / 1e9 == pytest.approx(ACTIVE[name], rel=0.09)


def test_every_known_model_reads() -> None:
    for name in known_models():
        assert known_model(f"some-org/{name.upper()}").layers > 0


def test_precision_comes_from_the_checkpoint_and_may_be_changed() -> None:
    assert known_model("DeepSeek-R1").precision is Precision.FP8_BLOCK
    assert known_model("gpt-oss-120b").precision is Precision.MXFP4
    assert known_model("Kimi-K2.5").precision is Precision.INT4
    wide = known_model("Llama-3.1-70B")
    narrow = wide.with_precision("fp8")
    # Linear layers halve; embedding and output head stay as they are.
    assert wide.weights.total_bytes - narrow.weights.total_bytes == wide.weights.linear_params


def test_config_from_a_file_and_a_folder(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 10,
        "intermediate_size": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path) == read_config(str(tmp_path / "config.json"))
    assert read_config(tmp_path).name == tmp_path.name


def test_sliding_layers_are_counted() -> None:
    assert known_model("gpt-oss-120b").sliding_layers == 18
    assert known_model("Qwen3-32B").sliding_layers == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": 0}, "vocab"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear attention"),
        ({"quantization_config": {"quant_method": "magic"}}, "quant_method"),
        ({"num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 9}, "experts_per_token"),
    ],
)
def test_a_bad_config_is_named(change: dict[str, object], message: str) -> None:
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 10,
        "intermediate_size": 8,
    }
    with pytest.raises(ConfigError, match=message):
        read_config({**config, **change})


def test_missing_files_and_names_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "nothing.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path)
    with pytest.raises(ConfigError, match="Qwen3-32B"):
        known_model("GPT-9")
