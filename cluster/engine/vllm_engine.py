"""vLLM behind the engine protocol. The only file that calls vLLM's Python API; imported inside worker processes.

CPU and CUDA take the same path; `VllmSettings` differ.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.engine.protocol import (
    HANDOFFS,
    EngineInfo,
    EngineLeg,
    EngineLoad,
    EngineOutput,
    TokenAlternatives,
    TransferFigures,
    WeightSums,
)
from cluster.engine.reasoning_end import PARSER, PARSER_MODULE
from cluster.engine.weight_sums import combine
from cluster.errors import EngineFailed, InvalidRequest, ServingError, TransferBroken, WorkerDied
from cluster.model.model_path import uses_latent_attention

if TYPE_CHECKING:
    from baton.v1.inference_pb2 import Sampling


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Everything an engine is started with. Made from the spec by the pool's profile."""

    model_path: str
    max_model_len_tokens: int
    dtype: str
    block_size_tokens: int
    on_cpu: bool
    tensor_parallel_size: int = 1
    expert_parallel: bool = False
    gpu_memory_utilization: float = 0.9
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    trust_remote_code: bool = False
    reasons: bool = False
    kv_role: str | None = None
    kv_lease_s: int = 30
    speculative_num_tokens: int | None = None
    speculative_lookup_max_tokens: int = 4


log = logging.getLogger("baton.engine")

FORGET_TRIES = 20
FORGET_RETRY_S = 0.25
RATE_TOKENS = 64
"""Uncached prompt tokens below which a prefill's time is mostly overhead and tells no rate."""


class LoadBook:
    """Running totals, fed by vLLM's statistics after every engine step."""

    def __init__(self) -> None:
        self.running = self.waiting = self.steps = self.prompt_tokens = self.output_tokens = 0
        self.kv_usage = 0.0
        self.transfers: dict[str, TransferFigures] = {}
        self.prefill_tokens_per_s = 0.0
        self.preemptions = 0
        self.timed_steps = 0
        self.timed_s = 0.0
        self._step_began_s: float | None = None

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Take one step's statistics."""
        if scheduler is not None:
            now_s = time.monotonic()
            if self._step_began_s is not None:
                self.timed_steps += 1
                self.timed_s += now_s - self._step_began_s
            # Idle engines wait for their next request: that is no step.
            self._step_began_s = now_s if scheduler.num_running_reqs else None
            self.running = scheduler.num_running_reqs
            self.waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self.kv_usage = scheduler.kv_cache_usage
            self.steps += 1
            for row in (scheduler.kv_connector_stats or {}).get(HANDOFFS, ()):
                self._record_transfer(*row)
        if iteration is not None:
            self.prompt_tokens += iteration.num_prompt_tokens
            self.output_tokens += iteration.num_generation_tokens
            self.preemptions += iteration.num_preempted_reqs

    @property
    def idle(self) -> bool:
        """Whether no request was in the engine after its last step."""
        return self.running + self.waiting == 0

    def record_prefill(self, tokens: int, duration_s: float) -> None:
        """A prompt was computed by an engine that had nothing else to do: the rate a queue will move at."""
        if tokens >= RATE_TOKENS and duration_s > 0:
            rate, known = tokens / duration_s, self.prefill_tokens_per_s
            self.prefill_tokens_per_s = 0.8 * known + 0.2 * rate if known else rate

    def _record_transfer(self, engine_id: str, kv_bytes: int, duration_s: float, start: float, descs: int) -> None:
        leg_id = engine_id.rsplit("-", 1)[0]  # vLLM appends a random part to the id it was given
        old = self.transfers.pop(leg_id, None)
        if old is not None:  # another tensor-parallel rank's share of the same request
            kv_bytes, descs = kv_bytes + old.kv_bytes, descs + old.descriptors
            duration_s, start = max(duration_s, old.duration_s), min(start, old.start_unix_s)
        self.transfers[leg_id] = TransferFigures(kv_bytes, duration_s, start, descs)
        while len(self.transfers) > 4096:
            self.transfers.pop(next(iter(self.transfers)))


def _vllm_version() -> str:
    from vllm import __version__

    return str(__version__)


class VllmEngine:
    """One `AsyncLLM`."""

    def __init__(self, settings: VllmSettings, *, connector_module: str = "kv_transfer.connector") -> None:
        self._settings = settings
        self._connector_module = connector_module
        self._incarnation = uuid.uuid4().hex
        self._book = LoadBook()
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
        from vllm.v1.metrics.loggers import StatLoggerBase

        book = self._book

        class LoadLogger(StatLoggerBase):
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

            def record(
                self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
            ) -> None:
                book.record(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None: ...

        s = self._settings
        args: dict[str, Any] = {
            "model": s.model_path,
            "dtype": s.dtype,
            "max_model_len": s.max_model_len_tokens,
            "block_size": s.block_size_tokens,
            "enforce_eager": s.enforce_eager or s.on_cpu,
            "tensor_parallel_size": s.tensor_parallel_size,
            "enable_expert_parallel": s.expert_parallel,
            "enable_prefix_caching": True,
            "trust_remote_code": s.trust_remote_code,
            "kv_cache_dtype": s.kv_cache_dtype,
            "skip_tokenizer_init": False,
            # By name: imported in each of vLLM's processes, where it also keeps AMX attention off (see there).
            "worker_extension_cls": "cluster.engine.vllm_worker.WorkerExtension",
        }
        if s.kv_blocks:
            args["num_gpu_blocks_override"] = s.kv_blocks
        if s.max_num_seqs:
            args["max_num_seqs"] = s.max_num_seqs
        if s.max_num_batched_tokens:
            args["max_num_batched_tokens"] = s.max_num_batched_tokens
        if s.quantization:
            args["quantization"] = s.quantization
        if s.on_cpu:
            # The default multiprocess executor spins a core per engine when idle (FACTS section 2).
            args["distributed_executor_backend"] = "uni"
            if uses_latent_attention(s.model_path):
                args["attention_backend"] = "CPU_MLA"  # or vLLM takes AMX_MLA where the processor has AMX
        else:
            args["gpu_memory_utilization"] = s.gpu_memory_utilization
        # Not by the argument `reasoning_parser`, which would also look for the parser in this process.
        if s.reasons:
            args["structured_outputs_config"] = StructuredOutputsConfig(
                reasoning_parser=PARSER, reasoning_parser_plugin=PARSER_MODULE
            )
        if s.speculative_num_tokens:
            args["speculative_config"] = {
                "method": "ngram",
                "num_speculative_tokens": s.speculative_num_tokens,
                "prompt_lookup_max": s.speculative_lookup_max_tokens,
            }
        if s.kv_role:
            args["kv_transfer_config"] = KVTransferConfig(
                kv_connector="HandoffConnector",
                kv_connector_module_path=self._connector_module,
                kv_role=s.kv_role,
                engine_id=self._incarnation,
                kv_buffer_device="cpu" if s.on_cpu else "cuda",
                kv_load_failure_policy="fail",
                kv_connector_extra_config={"kv_lease_duration": s.kv_lease_s},
            )
        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        unknown = set(args) - known
        if unknown:
            raise EngineFailed(f"this vLLM has no engine argument {', '.join(sorted(unknown))}")
        config = AsyncEngineArgs(**args).create_engine_config(UsageContext.ENGINE_CONTEXT)
        # A model that is free to write white space may do nothing else to its limit. vLLM's check takes the setting
        # only with a backend by name, which would end the choice per schema; those that `auto` chooses heed it.
        config.structured_outputs_config.disable_any_whitespace = True
        return AsyncLLM.from_vllm_config(config, stat_loggers=[LoadLogger])

    async def generate(self, leg: EngineLeg) -> AsyncIterator[EngineOutput]:
        """Run a leg; see `Engine.generate`."""
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        first = True
        # Canaries come several at once: none of them tells the rate of a prefill.
        alone, started_s = self._book.idle and not leg.cache_salt, time.monotonic()
        try:
            sampling = _sampling_params(leg)
            # AsyncLLM's own context applies the model's eos; prompt ids need no tokeniser.
            prompt: dict[str, Any] = {"prompt_token_ids": leg.token_ids}
            if leg.cache_salt:
                prompt["cache_salt"] = leg.cache_salt
            stream = self._llm.generate(prompt, sampling, leg.leg_id, priority=-leg.priority, **_grammar_start(leg))
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
                        self._book.record_prefill(uncached, time.monotonic() - started_s)
                output.transfer = self._book.transfers.pop(leg.leg_id, None)
                if done.logprobs is not None:
                    output.logprobs = [
                        _alternatives(position, token)
                        for position, token in zip(done.logprobs, done.token_ids, strict=True)
                    ]
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
        """Submit a request aborted at birth; the connector then tells the source to free its blocks."""
        await self._llm.notify_kv_transfer_request_rejected(f"release-{uuid.uuid4().hex}", transfer_params)

    async def read_weights(self, first: int, budget_s: float) -> WeightSums:
        """As `cluster.weight_reader` reads them, all ranks of a piece in one sum."""
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
        """Totals of the load book."""
        book = self._book
        return EngineLoad(
            running_requests=book.running,
            waiting_requests=book.waiting,
            used_blocks=round(book.kv_usage * self._total_blocks),
            steps=book.steps,
            prompt_tokens=book.prompt_tokens,
            output_tokens=book.output_tokens,
            prefill_tokens_per_s=book.prefill_tokens_per_s,
            preemptions=book.preemptions,
            timed_steps=book.timed_steps,
            timed_s=book.timed_s,
        )

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

    given: Sampling = leg.sampling
    params: dict[str, Any] = {
        "max_tokens": leg.max_tokens,
        "min_tokens": leg.min_tokens,
        "detokenize": False,
        "output_kind": RequestOutputKind.DELTA,
        "ignore_eos": given.ignore_eos,
        "skip_clone": True,
    }
    for name in (
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "seed", "logprobs",
    ):  # fmt: skip
        if given.HasField(name):
            params[name] = getattr(given, name)
    if given.stop_token_ids:
        params["stop_token_ids"] = list(given.stop_token_ids)
    if given.logit_bias:
        params["logit_bias"] = dict(given.logit_bias)
    if given.allowed_token_ids:
        params["allowed_token_ids"] = list(given.allowed_token_ids)
    if given.bad_words:
        params["bad_words"] = list(given.bad_words)
    if leg.transfer_params:
        params["extra_args"] = {"kv_transfer_params": dict(leg.transfer_params)}
    match given.structured_output.WhichOneof("kind") if given.HasField("structured_output") else None:
        case "json_schema":
            params["structured_outputs"] = StructuredOutputsParams(json=given.structured_output.json_schema)
        case "regex":
            params["structured_outputs"] = StructuredOutputsParams(regex=given.structured_output.regex)
        case "grammar":
            params["structured_outputs"] = StructuredOutputsParams(grammar=given.structured_output.grammar)
        case "choices":
            params["structured_outputs"] = StructuredOutputsParams(choice=list(given.structured_output.choices.values))
        case "json_object":
            params["structured_outputs"] = StructuredOutputsParams(json_object=True)
    return SamplingParams(**params)


def _grammar_start(leg: EngineLeg) -> dict[str, Any]:
    """Where the grammar begins; vLLM asks the parser only while ``reasoning_ended`` is False."""
    if leg.reasoning_ended is None:
        return {}
    return {
        "reasoning_ended": leg.reasoning_ended,
        "reasoning_parser_kwargs": {"end_ids": list(leg.reasoning_end_ids)},
    }


def _alternatives(position: dict[int, Any], chosen: int) -> TokenAlternatives:
    rows = [(token, entry.logprob, entry.rank or 0) for token, entry in position.items()]
    rows.sort(key=lambda row: (row[0] != chosen, row[2]))
    return TokenAlternatives(rows)
