"""The vLLM connector of every Baton engine: NIXL pull, with two changes. Imported by vLLM inside the engine.

1. Decode may be given more tokens than prefill computed. The stock connector assumes that the whole prompt came from
   prefill; here the ticket's ``remote_num_tokens`` is trusted. So prefill's first token can go to the caller before
   the transfer begins, and decode continues after it (FACTS: exact for all prompt lengths tried; with the stock
   connector the engine core dies when the prompt is a multiple of the block size).
2. Each request's transfer is measured and reported with the engine's statistics.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import (
    NixlBaseConnector,
    NixlPullConnector,
)
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats

from cluster.engine import fault_injection
from cluster.engine.nixl_progress import let_progress_thread_sleep
from cluster.engine.protocol import HANDOFFS
from kv_transfer.keepalive import keep_accepted_alive

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


class HandoffStats(NixlKVConnectorStats):
    """vLLM's transfer statistics plus one row for each request."""

    def reset(self) -> None:
        """Empty all lists."""
        super().reset()
        self.data[HANDOFFS] = []


class HandoffScheduler(NixlPullConnectorScheduler):
    """Scheduler side: trusts the ticket's token count."""

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens to load from the source beyond those computed here, and whether they load asynchronously."""
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            remote = min(params.get("remote_num_tokens") or 0, len(request.prompt_token_ids or []))
            matched = remote - num_computed_tokens
            return (matched, True) if matched > 0 else (0, False)
        result: tuple[int, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return result


class HandoffWorker(NixlPullConnectorWorker):
    """Worker side: measures each request's transfer."""

    def __init__(self, vllm_config: VllmConfig, engine_id: str, kv_cache_config: KVCacheConfig) -> None:
        let_progress_thread_sleep()
        allowed_cpus = os.sched_getaffinity(0)
        super().__init__(vllm_config, engine_id, kv_cache_config)
        # On CPU the stock worker pins the calling thread, which runs the model too, to the last core of its NUMA
        # node: two engines on one machine then share one core while the others idle.
        os.sched_setaffinity(0, allowed_cpus)
        keep_accepted_alive()
        self.xfer_stats = HandoffStats()
        self._started_unix_s: dict[str, float] = {}

    def start_load_kv(self, metadata: NixlConnectorMetadata) -> None:
        """Post the reads; the time is taken first, so that it is never later than the first byte."""
        now = time.time()
        fault_injection.swap_blocks(metadata)  # nothing outside tests
        for request_id in metadata.reqs_to_recv:
            self._started_unix_s[request_id] = now
        super().start_load_kv(metadata)

    def _pop_done_transfers(self, transfers: dict[str, list[int]]) -> tuple[set[str], set[str]]:
        """As the base does, one request at a time, so that the telemetry is that of one request."""
        done: set[str] = set()
        failed: set[str] = set()
        data = self.xfer_stats.data
        for request_id in list(transfers):
            seen = len(data["bytes_transferred"])
            one = {request_id: transfers[request_id]}
            one_done, one_failed = super()._pop_done_transfers(one)
            done |= one_done
            failed |= one_failed
            if request_id in one:
                transfers[request_id] = one[request_id]
            else:
                del transfers[request_id]
            if len(data["bytes_transferred"]) > seen:
                data[HANDOFFS].append(
                    (
                        request_id,
                        sum(data["bytes_transferred"][seen:]),
                        max(data["transfer_duration"][seen:]),
                        self._started_unix_s.get(request_id, 0.0),
                        sum(data["num_descriptors"][seen:]),
                    )
                )
            if one_done or one_failed:
                self._started_unix_s.pop(request_id, None)
        if len(self._started_unix_s) > 4 * len(self._recving_metadata) + 64:
            # Full local prefix hits are only notified and never finish a transfer.
            self._started_unix_s = {k: v for k, v in self._started_unix_s.items() if k in self._recving_metadata}
        return done, failed


class HandoffConnector(NixlPullConnector):
    """What `kv_connector="HandoffConnector"` names."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        # The parent would build the stock scheduler and worker, and the worker opens a NIXL agent.
        NixlBaseConnector.__init__(self, vllm_config, role, kv_cache_config)
        self.connector_scheduler = None
        self.connector_worker = None
        if role == KVConnectorRole.SCHEDULER:
            self.connector_scheduler = HandoffScheduler(vllm_config, self.engine_id, kv_cache_config)
        else:
            self.connector_worker = HandoffWorker(vllm_config, self.engine_id, kv_cache_config)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Statistics object for the engine's loggers."""
        return HandoffStats(data=data) if data is not None else HandoffStats()
