"""A gateway's tokeniser and template without torch are those with it, and vLLM's parsers load afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import contextlib, json, sys
from cluster.spec.config import parse
from orchestrator.request.model_front import load_model_front
from orchestrator.request.torch_hidden import torch_hidden
from pathlib import Path

spec = parse('''
model: {path: models/reasoner, served_name: m, max_model_len_tokens: 1024, reasoning: {}}
pools: {colocated: {replicas: 1}}
''')
with torch_hidden() if sys.argv[1] == "hidden" else contextlib.nullcontext():
    front = load_model_front(spec, Path("models/reasoner"))
seen = {"torch": "torch" in sys.modules, "tokenizer": front.tokenizer.to_str(), "markers": str(front.markers)}
seen["chat"] = front.template.render(
    [{"role": "user", "content": "1+1"}], tools=None, variables={}, add_generation_prompt=True,
    continue_final_message=False,
)
from vllm.tool_parsers import ToolParserManager
seen["parser"] = ToolParserManager.get_tool_parser("hermes").__name__
print(json.dumps(seen))
"""


def loaded(how: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    assert "PyTorch was not found" not in run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_the_front_is_the_same_and_parsers_of_vllm_load_later() -> None:
    hidden, usual = loaded("hidden"), loaded("usual")
    assert not hidden.pop("torch")
    assert usual.pop("torch")
    assert hidden == usual
    assert hidden["parser"] == "Hermes2ProToolParser"
