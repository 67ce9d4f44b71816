"""Ways into a pod from outside the cluster, through the API server: a port of it, or a command in it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL
from websocket import WebSocketException

from cluster.errors import ConfigError, ServingError
from cluster.kubernetes.api import Api, Forbidden, KubernetesUnavailable, raise_for_good

log = logging.getLogger("baton.kubernetes")

POLL_S = 1.0
CHUNK_BYTES = 1 << 16


@contextlib.contextmanager
def forwarded(api: Api, namespace: str, pod: str, port: int) -> Iterator[str]:
    """Forward a port of a pod to a free one on loopback; yields ``host:port``.

    Each connection gets a tunnel of its own through the API server, as with ``kubectl port-forward``.

    Raises:
        ConfigError: the account may not forward ports, or there is no such pod.
        KubernetesUnavailable: the API server does not answer.
    """
    core = client.CoreV1Api(api.client)
    # Opened at once, so that a missing right is reported here, and used for the first connection.
    first = _tunnel(core, namespace, pod, port)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as tunnels:
        threading.Thread(
            target=_accept,
            args=(listener, core, namespace, pod, port, first, tunnels),
            daemon=True,
            name="port-forward",
        ).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # Wakes the thread in accept(), which close() alone does not on Linux.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _accept(
    listener: socket.socket, core: Any, namespace: str, pod: str, port: int, first: Any, tunnels: contextlib.ExitStack
) -> None:
    tunnel = first
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            if tunnel is not None:
                tunnel.close()
            return
        try:
            tunnel = tunnel or _tunnel(core, namespace, pod, port)
        except ServingError as error:
            log.warning("port-forward: %s", error)
            connection.close()
            continue
        far = tunnel.socket(port)
        for end in (connection, far):
            tunnels.callback(end.close)
        for source, sink in ((connection, far), (far, connection)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True, name="port-forward").start()
        tunnel = None


def _pump(source: Any, sink: Any) -> None:
    """Copy until one side ends; then end the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _tunnel(core: Any, namespace: str, pod: str, port: int) -> Any:
    try:
        return portforward(core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port))
    except ApiException as error:
        raise _plain(error, f"port {port} of pod {pod}", "pods/portforward") from error


def run(
    api: Api,
    namespace: str,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    tty: bool,
    out: Callable[[bytes], object],
    err: Callable[[bytes], object],
) -> int:
    """Run a command in a container; returns its exit status once it has ended.

    Args:
        api: Client.
        namespace: Of the pod.
        pod: Its name.
        container: Of the pod.
        command: Program and arguments; no shell.
        tty: Give it a terminal; all it writes is then output.
        out: Takes what it writes to stdout, as it comes.
        err: Takes what it writes to stderr.

    Raises:
        ConfigError: the account may not run commands there, or the command does not exist.
        KubernetesUnavailable: the connection broke before the command ended; whether it goes on is not known.
    """
    core = client.CoreV1Api(api.client)
    try:
        session = stream(
            core.connect_get_namespaced_pod_exec, pod, namespace, container=container, command=list(command),
            stdin=False, stdout=True, stderr=not tty, tty=tty, binary=True, _preload_content=False,
        )  # fmt: skip
    except ApiException as error:
        raise _plain(error, f"a command in pod {pod}", "pods/exec") from error
    try:
        while True:
            was_open = session.is_open()
            if was_open:
                session.update(timeout=POLL_S)
            for channel, take in ((STDOUT_CHANNEL, out), (STDERR_CHANNEL, err)):
                if data := session.read_channel(channel):
                    take(data)
            if not was_open:
                break
        return exit_status(session.read_channel(ERROR_CHANNEL).decode(errors="replace"), command)
    except (WebSocketException, OSError) as error:
        raise KubernetesUnavailable(f"the connection to pod {pod} broke: {error}; the command may go on") from error
    finally:
        session.close()


def exit_status(text: str, command: Sequence[str]) -> int:
    """Exit status of a command, from the Status object with which the API server ends its session.

    Raises:
        ConfigError: the command could not be started.
        KubernetesUnavailable: there is no Status.

    Example:
        >>> failed = {"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "2"}]}}
        >>> exit_status('{"status": "Success"}', ["a"]), exit_status(json.dumps(failed), ["a"])
        (0, 2)
    """
    try:
        status = json.loads(text)
    except ValueError:
        raise KubernetesUnavailable(
            f"the connection broke before `{' '.join(command)}` had ended; `baton status` shows how far it came"
        ) from None
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or []:
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise ConfigError(f"`{' '.join(command)}` could not be started: {status.get('message', text)}")


def _plain(error: ApiException, what: str, right: str) -> ServingError:
    """The error of a websocket handshake, whose status is in its text alone."""
    found = re.search(r"Handshake status (\d+)", str(error.reason))
    if found is None:
        return KubernetesUnavailable(f"{what}: the Kubernetes API does not answer: {error.reason}")
    status = int(found[1])
    if status == 403:
        return Forbidden(f"{what}: the account may not `create` and `get` {right}; ask for that right")
    if status == 404:
        return ConfigError(f"{what}: there is none; it may have ended a moment ago, try again")
    try:
        raise_for_good(ApiException(status=status, reason="handshake refused"))
    except ServingError as known:
        return known
    return KubernetesUnavailable(f"{what}: the Kubernetes API answers {status}")
