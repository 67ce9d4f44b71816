from __future__ import annotations

import pytest
import yaml

from scripts.fetch_helm import fetch
from tests.helm.chart import CHART, Chart, Manifest


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    return Chart(fetch(), tmp_path_factory.mktemp("helm"))


@pytest.fixture
def trial() -> Manifest:
    """Values of the CPU trial, to be changed."""
    return yaml.safe_load((CHART / "ci" / "cpu-trial-values.yaml").read_text())


@pytest.fixture
def h100() -> Manifest:
    """Values of the H100 cluster, to be changed."""
    return yaml.safe_load((CHART / "ci" / "h100-2p4d-rdma-values.yaml").read_text())
