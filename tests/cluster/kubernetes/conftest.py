from __future__ import annotations

import pytest
from kmock import RawHandler
from kubernetes import client

from cluster.kubernetes.api import Api
from cluster.kubernetes.provisioner import KubernetesProvisioner
from tests.support.kube_mock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api(kmock: RawHandler, clock: Clock) -> Api:
    settings = client.Configuration()
    settings.host = str(kmock.url).rstrip("/")
    settings.retries = False
    return Api(client.ApiClient(settings), sleep=clock.sleep, seed=1)


@pytest.fixture
def provisioner(api: Api, clock: Clock) -> KubernetesProvisioner:
    return KubernetesProvisioner(api, "serving", "baton-r1", now=clock.now)
