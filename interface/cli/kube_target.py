"""Which release on Kubernetes a command is for, and how it is reached (docs/adr/0011)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cluster.errors import ConfigError
from interface.client.credentials import Credentials

if TYPE_CHECKING:
    from cluster.kubernetes.release import Release


@dataclass(frozen=True, slots=True)
class KubeTarget:
    """A release, and the kubeconfig by which it is found; None takes what kubectl would take."""

    release: str
    context: str | None = None
    namespace: str | None = None
    kubeconfig: Path | None = None
    revision: str | None = None

    @contextlib.contextmanager
    def gateway(self, credentials: Credentials) -> Iterator[tuple[str, Credentials]]:
        """Forward a gateway's gRPC port; yields its address here and the credentials to call it with.

        Raises:
            ServingError: it cannot be found or reached; the text says what to do.
        """
        from cluster.kubernetes.tunnel import forwarded

        release = self._release()
        pod = asyncio.run(release.pod("gateway"))
        if pod.tls:
            # Called by a loopback address, which is in no certificate.
            name = credentials.server_name or pod.server_name
            credentials = dataclasses.replace(credentials, tls=True, server_name=name)
        with forwarded(release.api, release.namespace, pod.name, pod.ports["grpc"]) as address:
            yield address, credentials

    def baton_on_head(self, arguments: Sequence[str], *, tty: bool) -> None:
        """Run `baton` in the head's pod, where the cluster's own secrets are; exit as it does, unless all went well.

        What it writes goes to our own stdout and stderr.

        Raises:
            ServingError: it cannot be run there; the text says what to do.
        """
        from cluster.kubernetes.tunnel import run

        release = self._release()
        pod = asyncio.run(release.pod("head"))
        command = ["baton", *arguments]
        if tty:
            size = os.get_terminal_size()
            command = ["env", f"COLUMNS={size.columns}", f"LINES={size.lines}", *command]

        def to(stream: TextIO) -> Callable[[bytes], object]:
            def write(data: bytes) -> None:
                stream.buffer.write(data)
                stream.flush()

            return write

        status = run(
            release.api, release.namespace, pod.name, pod.container, command,
            tty=tty, out=to(sys.stdout), err=to(sys.stderr),
        )  # fmt: skip
        if status:
            sys.exit(status)  # the command there has said why

    def _release(self) -> Release:
        try:
            from cluster.kubernetes.api import context_namespace, from_kubeconfig
            from cluster.kubernetes.release import Release
        except ImportError as error:
            raise ConfigError(
                "--release needs the Kubernetes client: pip install 'baton-inference[kubernetes]'"
            ) from error
        api = from_kubeconfig(self.kubeconfig, self.context)
        namespace = self.namespace or context_namespace(self.kubeconfig, self.context)
        return Release(api, namespace, self.release, self.revision)
