"""What is changed in vLLM's connector, over base classes that the test plays."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.protocol import HANDOFFS

VLLM = "vllm.distributed.kv_transfer.kv_connector.v1"
STOCK = ("stock", False)


class Stats:
    """`NixlKVConnectorStats`: one entry a list for each transfer of a request and rank."""

    def __init__(self, data: dict[str, list[Any]] | None = None) -> None:
        self.data: dict[str, list[Any]] = data if data is not None else {}
        if data is None:
            self.reset()

    def reset(self) -> None:
        self.data = {name: [] for name in ("transfer_duration", "bytes_transferred", "num_descriptors")}


class Scheduler:
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[Any, bool]:
        return STOCK


class Worker:
    """Reads end as ``ends`` says: by handle, how many descriptors and bytes, or None for a failed one."""

    def __init__(self, vllm_config: Any, engine_id: str, kv_cache_config: Any) -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as the stock worker does
        self.xfer_stats = Stats()
        self.ends: dict[int, tuple[int, int] | None] = {}
        self.posted: list[str] = []
        self._recving_metadata: dict[str, Any] = {}

    def start_load_kv(self, metadata: Any) -> None:
        self.posted += list(metadata.reqs_to_recv)
        self._recving_metadata |= metadata.reqs_to_recv

    def _pop_done_transfers(self, transfers: dict[str, list[int]]) -> tuple[set[str], set[str]]:
        done: set[str] = set()
        failed: set[str] = set()
        for request_id, handles in list(transfers.items()):
            for handle in list(handles):
                if handle not in self.ends:
                    continue
                handles.remove(handle)
                end = self.ends[handle]
                if end is None:
                    failed.add(request_id)
                    continue
                self.xfer_stats.data["transfer_duration"].append(float(handle))
                self.xfer_stats.data["num_descriptors"].append(end[0])
                self.xfer_stats.data["bytes_transferred"].append(end[1])
            if not handles or request_id in failed:
                del transfers[request_id]
                self._recving_metadata.pop(request_id, None)
                if request_id not in failed:
                    done.add(request_id)
        return done, failed


@pytest.fixture(scope="module")
def connector() -> Iterator[Any]:
    """The module, over these classes; vLLM itself is not imported."""
    contents: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.distributed": {},
        "vllm.distributed.kv_transfer": {},
        "vllm.distributed.kv_transfer.kv_connector": {},
        VLLM: {},
        f"{VLLM}.base": {"KVConnectorRole": SimpleNamespace(SCHEDULER=0, WORKER=1)},
        f"{VLLM}.nixl": {},
        f"{VLLM}.nixl.connector": {"NixlBaseConnector": object, "NixlPullConnector": type("Pull", (), {})},
        f"{VLLM}.nixl.pull_scheduler": {"NixlPullConnectorScheduler": Scheduler},
        f"{VLLM}.nixl.pull_worker": {"NixlPullConnectorWorker": Worker},
        f"{VLLM}.nixl.stats": {"NixlKVConnectorStats": Stats},
    }
    name = "kv_transfer.connector"
    before = {key: sys.modules.get(key) for key in (*contents, name)}
    for key, names in contents.items():
        module = ModuleType(key)
        module.__dict__.update(names)
        sys.modules[key] = module
    sys.modules.pop(name, None)
    try:
        yield importlib.import_module(name)
    finally:
        for key, module in before.items():
            if module is None:
                sys.modules.pop(key, None)
            else:
                sys.modules[key] = module


def request(prompt: int, **params: Any) -> Any:
    return SimpleNamespace(prompt_token_ids=[1] * prompt, kv_transfer_params=params)


@given(prompt=st.integers(1, 300), remote=st.integers(0, 300), here=st.integers(0, 300))
def test_no_more_is_read_than_the_ticket_says_and_the_prompt_has(
    connector: Any, prompt: int, remote: int, here: int
) -> None:
    matched, later = connector.HandoffScheduler().get_num_new_matched_tokens(
        request(prompt, do_remote_prefill=True, remote_num_tokens=remote), here
    )
    assert here + matched <= max(here, min(prompt, remote))
    assert (here + matched == min(prompt, remote)) or (matched == 0 and here >= min(prompt, remote))
    assert later is (matched > 0)


def test_a_prompt_of_whole_blocks_is_read_whole(connector: Any) -> None:
    """The stock connector leaves the last token out there, and the engine core dies."""
    scheduler = connector.HandoffScheduler()
    asked = request(65, do_remote_prefill=True, remote_num_tokens=64)
    assert scheduler.get_num_new_matched_tokens(asked, 0) == (64, True)


@pytest.mark.parametrize("params", [{}, {"do_remote_decode": True}, {"do_remote_prefill": False}])
def test_a_leg_that_reads_nothing_is_the_stock_connectors(connector: Any, params: dict[str, Any]) -> None:
    assert connector.HandoffScheduler().get_num_new_matched_tokens(request(65, **params), 0) == STOCK


def test_statistics_begin_with_a_list_for_handoffs(connector: Any) -> None:
    stats = connector.HandoffStats()
    assert stats.data[HANDOFFS] == []
    stats.data[HANDOFFS].append(1)
    stats.reset()
    assert stats.data[HANDOFFS] == []
    assert connector.HandoffConnector.build_kv_connector_stats({"a": [1]}).data == {"a": [1]}


@pytest.fixture
def worker(connector: Any) -> Any:
    return connector.HandoffWorker(None, "engine", None)


def test_the_worker_may_use_the_cores_it_had(connector: Any) -> None:
    allowed = os.sched_getaffinity(0)
    connector.HandoffWorker(None, "engine", None)
    assert os.sched_getaffinity(0) == allowed


REQUESTS = ("a", "b", "c")
ENDS = st.one_of(st.none(), st.tuples(st.integers(1, 9), st.integers(1, 10**6)))


@given(
    ends=st.lists(ENDS, min_size=6, max_size=6),
    rounds=st.lists(st.sets(st.integers(1, 6)), max_size=5),
)
def test_each_request_is_reported_once_with_what_it_moved(
    connector: Any, ends: list[tuple[int, int] | None], rounds: list[set[int]]
) -> None:
    """Two reads (ranks) a request end in any order, some failing."""
    worker = connector.HandoffWorker(None, "engine", None)
    transfers = {name: [2 * index + 1, 2 * index + 2] for index, name in enumerate(REQUESTS)}
    worker.start_load_kv(SimpleNamespace(reqs_to_recv=dict.fromkeys(REQUESTS)))
    assert worker.posted == list(REQUESTS)
    done: set[str] = set()
    failed: set[str] = set()
    for ended in [*rounds, set(range(1, 7))]:
        worker.ends |= {handle: ends[handle - 1] for handle in ended}
        now_done, now_failed = worker._pop_done_transfers(transfers)
        assert not now_done & (done | failed)
        done |= now_done
        failed |= now_failed
    assert done | failed == set(REQUESTS)
    assert not transfers
    assert not worker._started_unix_s
    rows: dict[str, list[Any]] = {}
    for name, *figures in worker.xfer_stats.data[HANDOFFS]:
        rows.setdefault(name, []).append(figures)
    for index, name in enumerate(REQUESTS):
        moved = [end for end in ends[2 * index : 2 * index + 2] if end is not None]
        got = rows.get(name, [])
        if name in done:
            assert sum(row[0] for row in got) == sum(end[1] for end in moved)
            assert sum(row[3] for row in got) == sum(end[0] for end in moved)
            assert all(row[2] > 0 for row in got)  # when its reads were posted


def test_a_transfer_that_was_never_posted_is_forgotten(worker: Any) -> None:
    """Full hits of the local prefix cache are only notified."""
    for index in range(100):
        worker.start_load_kv(SimpleNamespace(reqs_to_recv={f"hit-{index}": None}))
        worker._recving_metadata.clear()
    worker._pop_done_transfers({})
    assert not worker._started_unix_s
