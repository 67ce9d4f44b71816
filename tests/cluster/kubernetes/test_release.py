"""Which pod of a release is reached."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError, NoReadyWorker
from cluster.kubernetes.release import Release, ReleasePod, choose

PODS = st.lists(
    st.builds(
        lambda name, revision, ready: ReleasePod(f"pod-{name}", "gateway", revision, ready, "c", {}),
        st.integers(0, 9),
        st.sampled_from(["r1", "r2"]),
        st.booleans(),
    ),
    min_size=1,
)


@given(pods=PODS, revision=st.sampled_from([None, "r1", "r2"]))
def test_a_ready_pod_of_the_one_revision_is_chosen_or_it_is_said_why_not(
    pods: list[ReleasePod], revision: str | None
) -> None:
    revisions = {pod.revision for pod in pods}
    if revision is None and len(revisions) == 2:
        with pytest.raises(ConfigError, match="choose one with --revision: r1, r2"):
            choose(pods, revision, "release trial")
        return
    if revision is not None and revision not in revisions:
        with pytest.raises(ConfigError, match=f"has no revision {revision}"):
            choose(pods, revision, "release trial")
        return
    fitting = [pod for pod in pods if pod.ready and revision in (None, pod.revision)]
    if not fitting:
        with pytest.raises(NoReadyWorker, match="is ready"):
            choose(pods, revision, "release trial")
    else:
        assert choose(pods, revision, "release trial").name == min(pod.name for pod in fitting)
        assert choose(pods, revision, "release trial").ready


def pod(name: str, release: str = "trial", *, deleted: str | None = None, **more: Any) -> SimpleNamespace:
    labels = {"app.kubernetes.io/component": "gateway", "app.kubernetes.io/instance": release, "baton.io/revision": "r"}
    container = SimpleNamespace(name="gateway", ports=[SimpleNamespace(name="grpc", container_port=50051)])
    return SimpleNamespace(
        metadata=SimpleNamespace(
            name=name, labels=labels, annotations=more.get("annotations"), deletion_timestamp=deleted
        ),
        status=SimpleNamespace(conditions=[SimpleNamespace(type="Ready", status="True")]),
        spec=SimpleNamespace(containers=[container], volumes=more.get("volumes")),
    )


class Api:
    """`cluster.kubernetes.api.Api` that lists these pods."""

    client = None

    def __init__(self, *pods: SimpleNamespace) -> None:
        self._pods = list(pods)
        self.selectors: list[str] = []

    async def call(self, _: Any, namespace: str, *, label_selector: str) -> SimpleNamespace:
        assert namespace == "serving"
        self.selectors.append(label_selector)
        return SimpleNamespace(items=self._pods)


def release(api: Api, name: str = "trial") -> Release:
    return Release(api, "serving", name)  # type: ignore[arg-type]


async def test_a_pod_that_is_being_deleted_is_not_ready() -> None:
    api = Api(pod("a", deleted="2026-11-29T00:00:00Z"), pod("b"), pod("0", release="another"))
    found = await release(api).pod("gateway")
    assert (found.name, found.ports, found.tls) == ("b", {"grpc": 50051}, False)
    assert api.selectors == ["app.kubernetes.io/component=gateway"]


async def test_a_gateway_with_a_certificate_says_under_which_name() -> None:
    volumes = [SimpleNamespace(name="config"), SimpleNamespace(name="tls")]
    found = await release(Api(pod("a", volumes=volumes, annotations={"baton.io/server-name": "x.test"}))).pod("gateway")
    assert (found.tls, found.server_name) == (True, "x.test")


async def test_a_release_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no release mine in namespace serving; there: other, trial"):
        await release(Api(pod("a"), pod("b", release="other")), "mine").pod("gateway")
    with pytest.raises(ConfigError, match="there: none"):
        await release(Api()).pod("gateway")
