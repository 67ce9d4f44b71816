"""Which attention kernel vLLM takes on CPU, on processors that this machine need not be."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.model.model_path import uses_latent_attention

ROOT = Path(__file__).resolve().parents[3]

# In a process of its own: it makes torch say of the processor what the case says.
CHOICES = """
import itertools, json, sys, torch
from vllm.v1.attention.backends import cpu_attn
upstream = cpu_attn._get_attn_isa
import cluster.engine.vllm_worker

def on(processor):
    torch.cpu._is_amx_tile_supported = lambda: processor == "amx"
    torch.cpu._is_avx512_supported = lambda: processor in ("amx", "avx512")

rows = []
for processor, dtype, block, head, kv in itertools.product(
    ("avx2", "avx512", "amx"), ("bfloat16", "float16", "float32"), (16, 32, 64, 96), (32, 64, 80, 128, None),
    ("auto", "fp8")
):
    row = [processor, dtype, block, head, kv]
    on(processor)
    for choose in (upstream, cpu_attn._get_attn_isa):
        try:
            row.append(choose(getattr(torch, dtype), block, head, kv))
        except NotImplementedError:
            row.append("refused")
    rows.append(row)
guarded = cpu_attn._get_attn_isa
cluster.engine.vllm_worker.avoid_amx_attention()
json.dump({"rows": rows, "once": cpu_attn._get_attn_isa is guarded}, sys.stdout)
"""


@pytest.fixture(scope="module")
def choices() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", CHOICES], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


@pytest.mark.engine
def test_no_processor_gets_the_amx_attention_and_nothing_else_changes(choices: dict[str, Any]) -> None:
    upstream = {tuple(row[:5]): row[5] for row in choices["rows"]}
    ours = {tuple(row[:5]): row[6] for row in choices["rows"]}
    assert upstream["amx", "bfloat16", 32, 64, "auto"].startswith("amx"), "vLLM no longer takes it: drop the guard"
    assert not [case for case, isa in ours.items() if isa.startswith("amx")]
    for dtype, block, head, kv in itertools.product(
        ("bfloat16", "float16", "float32"), (16, 32, 64, 96), (32, 64, 80, 128, None), ("auto", "fp8")
    ):
        # A processor with AMX has AVX-512, too: it computes what one with AVX-512 alone does.
        assert ours["amx", dtype, block, head, kv] == upstream["avx512", dtype, block, head, kv]
    assert all(ours[case] == isa for case, isa in upstream.items() if case[0] != "amx")


@pytest.mark.engine
def test_the_guard_is_put_on_once(choices: dict[str, Any]) -> None:
    assert choices["once"]


@pytest.mark.parametrize(
    ("config", "latent"),
    [
        ({"model_type": "llama"}, False),
        ({"kv_lora_rank": 512}, True),
        ({"text_config": {"kv_lora_rank": 512}}, True),
        ({"kv_lora_rank": None}, False),
    ],
)
def test_latent_attention_is_read_from_the_config(tmp_path: Path, config: dict[str, Any], latent: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert uses_latent_attention(str(tmp_path)) is latent


def test_a_folder_without_a_config_is_left_to_the_engine(tmp_path: Path) -> None:
    assert not uses_latent_attention(str(tmp_path))
