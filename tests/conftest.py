"""Fixtures that many tests share. Engines start slowly, so one cluster serves all tests that only need to call it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.cpu import description, force_variant
from tests.support.live_cluster import LiveCluster, kept_cluster, start_cluster

force_variant(os.environ)

# The same examples each time, so that a landing does not hang on luck; BATON_TEST_EXPLORE=1 draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("BATON_TEST_EXPLORE") else "same")

ROOT = Path(__file__).resolve().parent.parent

# float32: in bfloat16 the make-up of a batch changes rounding and, rarely, a greedy token.
SHARED_SPEC = """
name: shared-test
model:
  path: {model}
  served_name: reasoner
  max_model_len_tokens: 2048
  dtype: float32
  reasoning: {{effort_budgets_tokens: {{none: 0, low: 16, medium: 64, high: 1024}}}}
pools:
  prefill: {{replicas: 1}}
  decode: {{replicas: 2}}
  colocated: {{replicas: 1}}
transfer: {{transports: [shared_memory, tcp], local_prefill_after_s: null}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0, max_request_bytes: 1048576}}
cost: {{usd_per_cpu_hour: 0.04}}
"""


def pytest_report_header() -> str:
    """Which processor this is, and as which one it is used."""
    return f"cpu: {description()}"


@pytest.fixture(scope="session")
def test_model() -> Path:
    """The small model that engine tests serve."""
    return Path(os.environ.get("BATON_TEST_MODEL") or ROOT / "models" / "reasoner")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, test_model: Path) -> Iterator[LiveCluster]:
    """One prefill, two decode and one colocated worker, started by `baton up --detach`, in float32.

    ``BATON_TEST_CLUSTER=folder`` keeps the cluster in that folder from one run of the tests to the next.
    """
    if kept := os.environ.get("BATON_TEST_CLUSTER"):
        yield kept_cluster(Path(kept), SHARED_SPEC.format(model=test_model))
        return
    folder = tmp_path_factory.mktemp("cluster")
    live = start_cluster(folder, SHARED_SPEC.format(model=test_model))
    try:
        yield live
    finally:
        live.stop()
