import pytest

from cluster.errors import ConfigError
from cluster.model.known_models import known_model
from kv_transfer.blocks import blocks_for, kv_bytes, kv_bytes_per_token, kv_bytes_per_token_per_gpu, kv_shards

# bf16 bytes per token, all layers (public model cards and vLLM logs).
PER_TOKEN = {
    "Llama-3.1-8B": 131072,
    "Llama-3.1-70B": 327680,
    "Qwen3-8B": 147456,
    "Qwen3-32B": 262144,
    "Qwen3-30B-A3B": 98304,
    "Qwen3-235B-A22B": 192512,
    "gpt-oss-120b": 73728,
    "DeepSeek-R1": 70272,
}


@pytest.mark.parametrize("name", PER_TOKEN)
def test_bytes_per_token(name: str) -> None:
    model = known_model(name)
    assert kv_bytes_per_token(model) == PER_TOKEN[name]
    assert kv_bytes_per_token(model, 1.0) == PER_TOKEN[name] / 2


def test_a_latent_is_whole_on_every_gpu_and_heads_are_not_cut() -> None:
    latent, few = known_model("DeepSeek-R1"), known_model("Qwen3-235B-A22B")
    assert kv_bytes_per_token_per_gpu(latent, 8) == kv_bytes_per_token(latent)
    assert [kv_shards(few, tp) for tp in (1, 2, 4, 8)] == [1, 2, 4, 4]


def test_a_handoff_moves_whole_blocks() -> None:
    model = known_model("Llama-3.1-8B")
    assert blocks_for(64, 32) == 2
    assert kv_bytes(model, 65, 32) == 3 * 32 * 131072
    with pytest.raises(ConfigError):
        blocks_for(1, 0)
    with pytest.raises(ConfigError):
        kv_bytes_per_token(model, 0)
