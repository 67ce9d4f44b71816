"""Steps vLLM's engine in this process, one stream, and prints the times of its tokens as JSON.

The floor of what any server around the same engine can reach: no socket, no queue, no other process. Run by
compare.py in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


def measure(
    model: Path, *, dtype: str, isl: int, osl: int, requests: int, seed: int, max_model_len: int
) -> dict[str, Any]:
    """Times of each request's tokens, in seconds since it was added."""
    # In this process and not in one of its own: that is what "stepped in process" means.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    from bench.workload import PlannedRequest, prompt_ids

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            dtype=dtype,
            max_model_len=max_model_len,
            block_size=32,
            enforce_eager=True,
            enable_prefix_caching=True,
            distributed_executor_backend="uni",
            disable_log_stats=True,
        )
    )
    sampling = SamplingParams(
        max_tokens=osl,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    streams: list[list[float]] = []
    for index in range(requests + 1):
        ids = prompt_ids(PlannedRequest(index, isl, osl), seed=seed, low=32, high=96)
        times: list[float] = []
        start_s = time.perf_counter()
        engine.add_request(str(index), {"prompt_token_ids": ids}, sampling)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now_s = time.perf_counter() - start_s
            times += [now_s for output in outputs for _ in output.outputs[0].token_ids]
        assert len(times) == osl, f"{len(times)} tokens of {osl}"
        if index:  # the first one warms up
            streams.append(times)
    return {"streams_s": streams}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--isl", type=int, default=500)
    parser.add_argument("--osl", type=int, default=128)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    found = measure(
        chosen.model,
        dtype=chosen.dtype,
        isl=chosen.isl,
        osl=chosen.osl,
        requests=chosen.requests,
        seed=chosen.seed,
        max_model_len=chosen.max_model_len,
    )
    chosen.out.write_text(json.dumps(found))
