"""Calls to a Kubernetes API server that is busy, restarting or far away. Needs the `kubernetes` extra."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from cluster.errors import ConfigError, ServingError

ATTEMPTS = 6
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
REQUEST_TIMEOUT_S = 15.0
_CONFLICT, _GONE, _TOO_MANY = 409, 410, 429

Sleep = Callable[[float], Awaitable[None]]


class KubernetesUnavailable(ServingError):
    """The API server did not answer, however often it was asked. Nothing is known to have changed."""

    retryable = True


class Conflict(ServingError):
    """The object was changed by somebody else since it was read: read it again and decide again."""

    retryable = True


class Forbidden(ConfigError):
    """The account lacks a right."""


class WatchExpired(ServingError):
    """The watch's resourceVersion is too old (410 Gone): list again."""

    retryable = True


def backoff_s(attempt: int, retry_after_s: float | None, draw: float) -> float:
    """Seconds to wait after a failed attempt: doubling, with jitter, never less than the server asked for.

    Args:
        attempt: 0 after the first failure.
        retry_after_s: The server's `Retry-After`.
        draw: Uniform on [0, 1), so that controllers that failed together do not come back together.

    Example:
        >>> [backoff_s(n, None, 0.0) for n in range(4)], backoff_s(20, None, 0.0), backoff_s(0, 7.0, 0.5)
        ([0.5, 1.0, 2.0, 4.0], 30.0, 7.0)
    """
    own = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0**attempt)
    return max(own * (1 + 0.25 * draw), retry_after_s or 0.0)


class Api:
    """The official client, with retries.

    Args:
        api: Client with its server and credentials.
        sleep: Waits; replaced in tests.
        seed: Of the jitter.
    """

    def __init__(self, api: client.ApiClient, *, sleep: Sleep = asyncio.sleep, seed: int | None = None) -> None:
        self.client = api
        self.sleep = sleep
        self._random = random.Random(seed)

    async def call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method of the client off the event loop; repeat on 429, 5xx, timeouts and broken connections.

        Raises:
            Conflict: 409.
            WatchExpired: 410.
            ConfigError: the server refuses for good (other 4xx); the text is its own.
            KubernetesUnavailable: it failed `ATTEMPTS` times.
        """
        options.setdefault("_request_timeout", REQUEST_TIMEOUT_S)
        last = ""
        for attempt in range(ATTEMPTS):
            retry_after_s: float | None = None
            try:
                return await asyncio.to_thread(method, *arguments, **options)
            except ApiException as error:
                last = f"{error.status} {error.reason}"
                raise_for_good(error)
                retry_after_s = _retry_after_s(error)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                last = type(error).__name__
            if attempt + 1 < ATTEMPTS:
                await self.sleep(backoff_s(attempt, retry_after_s, self._random.random()))
        raise KubernetesUnavailable(f"the Kubernetes API failed {ATTEMPTS} times, at last with {last}; try again later")


def raise_for_good(error: ApiException) -> None:
    """Raise what a retry of the same call cannot help; return where it can."""
    if error.status == _CONFLICT:
        raise Conflict("the object was changed by another; read it again") from error
    if error.status == _GONE:
        raise WatchExpired("the watch is too old; list again") from error
    if error.status is not None and 400 <= error.status < 500 and error.status != _TOO_MANY:
        if error.status == 403:
            raise Forbidden(f"Kubernetes refuses: the account lacks a right: {_said(error)}") from error
        hint = "; log in again" if error.status == 401 else ""
        raise ConfigError(f"Kubernetes refuses: {error.status} {_said(error)}{hint}") from error


def _said(error: ApiException) -> str:
    """What the server says of it: for a missing right, which account may not do what to which resource."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _retry_after_s(error: ApiException) -> float | None:
    try:
        return float((error.headers or {}).get("Retry-After", ""))
    except ValueError:
        return None


def in_cluster() -> Api:
    """Client of a pod, by its service account; by ``$KUBECONFIG`` where that is set, for a head outside the cluster.

    Raises:
        ConfigError: this is no pod, or it has no token.
    """
    if os.environ.get("KUBECONFIG"):
        return from_kubeconfig()
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        raise ConfigError(f"no service account here ({error}); this runs in a pod of the chart") from error
    return Api(client.ApiClient(settings))


def from_kubeconfig(path: Path | None = None, context: str | None = None) -> Api:
    """Client of a laptop, by kubeconfig (``$KUBECONFIG``, else ``~/.kube/config``).

    Raises:
        ConfigError: there is no such file or context; the text names the contexts there are.
    """
    _context(path, context)
    settings = client.Configuration()
    try:
        config.load_kube_config(_name(path), context, client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise ConfigError(f"kubeconfig: {error}") from error
    return Api(client.ApiClient(settings))


def context_namespace(path: Path | None = None, context: str | None = None) -> str:
    """Namespace that a context of the kubeconfig names; ``default`` where it names none, as for kubectl.

    Raises:
        ConfigError: as for `from_kubeconfig`.
    """
    return str(_context(path, context).get("context", {}).get("namespace") or "default")


def _context(path: Path | None, name: str | None) -> dict[str, Any]:
    """The context of this name, or the current one."""
    try:
        contexts, current = config.list_kube_config_contexts(_name(path))
    except (config.ConfigException, OSError) as error:
        raise ConfigError(f"kubeconfig: {error}; give --kubeconfig, or set KUBECONFIG") from error
    if name is None:
        return dict(current)
    for each in contexts:
        if each["name"] == name:
            return dict(each)
    known = ", ".join(sorted(each["name"] for each in contexts))
    raise ConfigError(f"kubeconfig: no context {name}; there are {known}")


def _name(path: Path | None) -> str | None:
    # The client itself reads the variable when it is imported, which may be before it is set.
    return str(path) if path else os.environ.get("KUBECONFIG")
