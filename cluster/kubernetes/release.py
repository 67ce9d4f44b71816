"""A release of the chart, seen from a laptop: its gateways and its head, by the labels that the chart gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from cluster.errors import ConfigError, NoReadyWorker
from cluster.kubernetes.api import Api

COMPONENT_LABEL = "app.kubernetes.io/component"
RELEASE_LABEL = "app.kubernetes.io/instance"
REVISION_LABEL = "baton.io/revision"
SERVER_NAME_ANNOTATION = "baton.io/server-name"
"""On gateways: the name that their certificate has, which a caller by another address must ask for."""
TLS_VOLUME = "tls"
"""The gateways' volume with the certificate; without it they speak plaintext."""


@dataclass(frozen=True, slots=True)
class ReleasePod:
    """A pod of a release. ``container`` is its first one, ``ports`` are that one's by name."""

    name: str
    component: str
    revision: str
    ready: bool
    container: str
    ports: Mapping[str, int]
    tls: bool = False
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Where a release is. ``revision`` chooses one of two during an upgrade."""

    api: Api
    namespace: str
    name: str
    revision: str | None = None

    async def pod(self, component: str) -> ReleasePod:
        """A ready pod of the release: of its ``gateway`` or its ``head``.

        Raises:
            ConfigError: no such release or revision, or two revisions and none chosen; the text names those there are.
            NoReadyWorker: it has such pods, and none is ready.
            ServingError: see `Api.call`.
        """
        core = client.CoreV1Api(self.api.client)
        found = await self.api.call(
            core.list_namespaced_pod, self.namespace, label_selector=f"{COMPONENT_LABEL}={component}"
        )
        labels = [item.metadata.labels or {} for item in found.items]
        items = [item for item, has in zip(found.items, labels, strict=True) if has.get(RELEASE_LABEL) == self.name]
        if not items:
            others = _listed(has.get(RELEASE_LABEL, "") for has in labels)
            raise ConfigError(f"no release {self.name} in namespace {self.namespace}; there: {others}")
        return choose([_pod(item) for item in items], self.revision, f"release {self.name}")


def choose(pods: Iterable[ReleasePod], revision: str | None, where: str) -> ReleasePod:
    """One of the pods that are ready.

    Raises:
        ConfigError: ``revision`` is not there, or None and there are two.
        NoReadyWorker: none is ready.

    Example:
        >>> pods = [ReleasePod(name, "head", "r1", name == "b", "ray-head", {}) for name in "ab"]
        >>> choose(pods, None, "trial").name
        'b'
    """
    pods = list(pods)
    revisions = sorted({pod.revision for pod in pods})
    if revision is not None and revision not in revisions:
        raise ConfigError(f"{where} has no revision {revision}; it has {', '.join(revisions)}")
    if revision is None and len(revisions) > 1:
        raise ConfigError(f"{where} is being upgraded; choose one with --revision: {', '.join(revisions)}")
    chosen = [pod for pod in pods if revision in (None, pod.revision)]
    ready = [pod for pod in chosen if pod.ready]
    if not ready:
        raise NoReadyWorker(
            f"{where}: none of its {len(chosen)} {chosen[0].component} pods is ready; `kubectl get pods`"
        )
    return min(ready, key=lambda pod: pod.name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted({name for name in names if name})) or "none"


def _pod(item: Any) -> ReleasePod:
    labels, annotations = item.metadata.labels or {}, item.metadata.annotations or {}
    conditions = {each.type: each.status for each in (item.status.conditions or [] if item.status else [])}
    container = item.spec.containers[0]
    return ReleasePod(
        item.metadata.name,
        labels.get(COMPONENT_LABEL, ""),
        labels.get(REVISION_LABEL, ""),
        conditions.get("Ready") == "True" and not item.metadata.deletion_timestamp,
        container.name,
        {port.name: port.container_port for port in container.ports or []},
        any(volume.name == TLS_VOLUME for volume in item.spec.volumes or []),
        annotations.get(SERVER_NAME_ANNOTATION, ""),
    )
