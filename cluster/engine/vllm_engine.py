"""vLLM behind the engine protocol. The one file that runs vLLM's engine; imported inside worker processes.

CPU and CUDA take the same path; `VllmSettings` differ.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from cluster.engine.engine_counters import EngineCounters
from cluster.engine.protocol import (
    EngineInfo,
    EngineLeg,
    EngineLoad,
    EngineOutput,
    WeightSums,
)
from cluster.engine.vllm_logprobs import alternatives, prompt_scores
from cluster.engine.vllm_sampling import grammar_start, sampling_arguments, structured_arguments
from cluster.engine.vllm_settings import VllmSettings, engine_arguments
from cluster.engine.weight_sums import combine
from cluster.errors import EngineFailed, InvalidRequest, ServingError, TransferBroken, WorkerDied

log = logging.getLogger("baton.engine")

FORGET_TRIES = 20
FORGET_RETRY_S = 0.25


def _load_logger(counters: EngineCounters) -> type:
    """A class of vLLM's statistics loggers that feeds the counters."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class LoadLogger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            counters.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None: ...

    return LoadLogger


def _vllm_version() -> str:
    from vllm import __version__

    return str(__version__)


class VllmEngine:
    """One `AsyncLLM`. Owns it, its incarnation and its counters."""

    def __init__(self, settings: VllmSettings, *, connector_module: str = "kv_transfer.connector") -> None:
        self._settings = settings
        self._connector_module = connector_module
        self._incarnation = uuid.uuid4().hex
        self._counters = EngineCounters()
        self._llm: Any = None
        self._total_blocks = 0

    async def start(self) -> EngineInfo:
        """Load the model. Import of vLLM takes seconds, so it is done off the event loop."""
        try:
            self._llm = await asyncio.to_thread(self._build)
        except Exception as error:
            raise EngineFailed(f"vLLM did not start: {error}") from error
        config = self._llm.vllm_config
        kernels = await self._llm.collective_rpc("attention_kernels")
        self._total_blocks = int(config.cache_config.num_gpu_blocks or 0)
        return EngineInfo(
            incarnation=self._incarnation,
            total_blocks=self._total_blocks,
            block_size_tokens=config.cache_config.block_size,
            max_model_len_tokens=config.model_config.max_model_len,
            vocab_size=config.model_config.get_vocab_size(),
            version=f"vllm {_vllm_version()}",
            attention_kernels=sorted({name for each in kernels for name in each}),
        )

    def _build(self) -> Any:
        from vllm.config import KVTransferConfig, StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        args = engine_arguments(self._settings, self._incarnation, self._connector_module)
        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        unknown = set(args) - known
        if unknown:
            raise EngineFailed(f"this vLLM has no engine argument {', '.join(sorted(unknown))}")
        if "structured_outputs_config" in args:
            args["structured_outputs_config"] = StructuredOutputsConfig(**args["structured_outputs_config"])
        if "kv_transfer_config" in args:
            args["kv_transfer_config"] = KVTransferConfig(**args["kv_transfer_config"])
        config = AsyncEngineArgs(**args).create_engine_config(UsageContext.ENGINE_CONTEXT)
        # A model that is free to write white space may do nothing else to its limit. vLLM's check takes the setting
        # only with a backend by name, which would end the choice per schema; those that `auto` chooses heed it.
        config.structured_outputs_config.disable_any_whitespace = True
        return AsyncLLM.from_vllm_config(config, stat_loggers=[_load_logger(self._counters)])

    async def generate(self, leg: EngineLeg) -> AsyncIterator[EngineOutput]:
        """Run a leg; see `Engine.generate`."""
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        first = True
        # Canaries come several at once: none of them shows the rate of a prefill.
        alone, started_s = self._counters.idle and not leg.cache_salt, time.monotonic()
        try:
            sampling = _sampling_params(leg)
            # AsyncLLM's own context applies the model's eos; prompt ids need no tokeniser.
            prompt: dict[str, Any] = {"prompt_token_ids": leg.token_ids}
            if leg.cache_salt:
                prompt["cache_salt"] = leg.cache_salt
            stream = self._llm.generate(prompt, sampling, leg.leg_id, priority=-leg.priority, **grammar_start(leg))
            async for out in stream:
                done = out.outputs[0]
                finish = done.finish_reason or ""
                if finish not in ("", "stop", "length", "abort"):
                    if leg.transfer_params and leg.transfer_params.get("do_remote_prefill"):
                        raise TransferBroken(f"the engine ended the leg with {finish}", leg_id=leg.leg_id)
                    raise EngineFailed(f"the engine ended the leg with {finish}", leg_id=leg.leg_id)
                output = EngineOutput(
                    leg_id=leg.leg_id,
                    token_ids=list(done.token_ids),
                    finish_reason=finish,
                    stop_reason="" if done.stop_reason is None else str(done.stop_reason),
                )
                if first:
                    output.cached_tokens = out.num_cached_tokens or 0
                    first = False
                    if alone and not (leg.transfer_params or {}).get("do_remote_prefill"):
                        uncached = len(leg.token_ids) - output.cached_tokens
                        self._counters.record_prefill(uncached, time.monotonic() - started_s)
                output.transfer = self._counters.transfers.pop(leg.leg_id, None)
                if done.logprobs is not None:
                    output.logprobs = [
                        alternatives(position, token)
                        for position, token in zip(done.logprobs, done.token_ids, strict=True)
                    ]
                if out.prompt_logprobs:
                    output.prompt_scores = prompt_scores(out.prompt_logprobs, leg.sampling.prompt_logprobs)
                if finish and leg.transfer_params and leg.transfer_params.get("do_remote_decode"):
                    output.transfer_params = out.kv_transfer_params
                yield output
        except ServingError:
            raise
        except EngineDeadError as error:
            raise WorkerDied("the engine core died", leg_id=leg.leg_id) from error
        except (VLLMValidationError, ValueError, TypeError) as error:
            raise InvalidRequest(f"the engine refused the request: {error}", leg_id=leg.leg_id) from error
        except Exception as error:
            raise EngineFailed(f"the engine failed: {type(error).__name__}: {error}", leg_id=leg.leg_id) from error

    async def abort(self, leg_id: str) -> None:
        """Abort by id, so that an output already on its way still arrives."""
        await self._llm.abort(leg_id)

    async def release(self, transfer_params: dict[str, Any]) -> None:
        """Submit a request aborted at birth; the connector then notifies the source, which frees its blocks."""
        await self._llm.notify_kv_transfer_request_rejected(f"release-{uuid.uuid4().hex}", transfer_params)

    async def read_weights(self, first: int, budget_s: float) -> WeightSums:
        """As `cluster.engine.weight_reader` reads them, all ranks of a piece in one sum."""
        try:
            ranks = await self._llm.collective_rpc("baton_read_weights", args=(first, budget_s))
        except Exception as error:
            raise EngineFailed(f"the weights cannot be read: {type(error).__name__}: {error}") from error
        return combine(ranks)

    async def forget_kv(self) -> None:
        """Reset the prefix cache. vLLM cannot while a request waits for remote KV, so it is tried for some seconds."""
        for _ in range(FORGET_TRIES):
            try:
                if await self._llm.reset_prefix_cache(reset_running_requests=True):
                    return
            except Exception as error:
                log.info("cached KV is not forgotten yet: %s", error)
            await asyncio.sleep(FORGET_RETRY_S)
        raise EngineFailed("the cached KV could not be dropped")

    def load(self) -> EngineLoad:
        """Totals of the counters."""
        return self._counters.load(self._total_blocks)

    async def check_health(self) -> None:
        """Raise if the engine core is gone."""
        try:
            await self._llm.check_health()
        except Exception as error:
            raise WorkerDied("the engine core is gone") from error

    async def stop(self) -> None:
        """Shut the engine core down."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            shutdown: Callable[[], None] = llm.shutdown
            await asyncio.to_thread(shutdown)


def _sampling_params(leg: EngineLeg) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    arguments = sampling_arguments(leg)
    structured = structured_arguments(leg.sampling)
    if structured is not None:
        arguments["structured_outputs"] = StructuredOutputsParams(**structured)
    return SamplingParams(output_kind=RequestOutputKind.DELTA, **arguments)
