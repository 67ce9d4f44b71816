"""How the processes of one cluster call each other: TLS or plaintext, with the cluster's secret or without.

Gateway, worker and controller each make one `InternalRpc` from the spec. The files that it names are read there, so a
secret travels neither in a spec nor on a command line, and a worker of another cluster is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from cluster.errors import ConfigError, Unauthenticated
from cluster.rpc_guard import AUTHORIZATION, Guard, Metadata
from cluster.secret_file import read_bytes, read_secret, same_secret
from cluster.spec.config import SecuritySettings

Options = Sequence[tuple[str, Any]]

MAX_METADATA_BYTES = 8 << 10
MAX_STREAMS = 256
"""Streams of one connection to a worker or the registry; a gateway has one."""
_SERVER_OPTIONS: Options = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # A gateway whose machine vanished sends no FIN: its legs would go on.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Gateways ping every 10 s, with streams or without.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


class InternalRpc:
    """Channels and servers inside one cluster.

    Args:
        security: The spec's section.

    Raises:
        ConfigError: a file it names cannot be used.
    """

    def __init__(self, security: SecuritySettings | None = None) -> None:
        security = security or SecuritySettings()
        path = security.cluster_secret_file
        self._secret = read_secret(path, "security.cluster_secret_file") if path else ""
        self._tls = security.internal_tls
        if self._tls is not None:
            name = "security.internal_tls"
            self._ca = read_bytes(self._tls.ca_file, f"{name}.ca_file")
            self._certificate = read_bytes(self._tls.certificate_file, f"{name}.certificate_file")
            self._private_key = read_bytes(self._tls.private_key_file, f"{name}.private_key_file")

    @property
    def metadata(self) -> Metadata:
        """Metadata of every call; shows the cluster's secret."""
        return ((AUTHORIZATION, f"Bearer {self._secret}"),) if self._secret else ()

    def channel(self, address: str, options: Options = ()) -> Any:
        """A channel to a peer; give its calls `metadata`."""
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        credentials = grpc.ssl_channel_credentials(self._ca, self._private_key, self._certificate)
        # Peers are called by address, which no certificate can foresee; it is their authority that is trusted.
        named = [*options, ("grpc.ssl_target_name_override", self._tls.server_name)]
        return grpc.aio.secure_channel(address, credentials, options=named)

    def server(self, options: Options = ()) -> Any:
        """A server that refuses callers without the secret."""
        guards = [Guard(self.check)] if self._secret else []
        return grpc.aio.server(interceptors=guards, options=[*_SERVER_OPTIONS, *options])

    def bind(self, server: Any, address: str) -> int:
        """Listen on ``host:port``; returns the port.

        Raises:
            ConfigError: the certificate cannot be used.
        """
        if self._tls is None:
            port: int = server.add_insecure_port(address)
            return port
        pair = [(self._private_key, self._certificate)]
        credentials = grpc.ssl_server_credentials(pair, self._ca, require_client_auth=True)
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"security.internal_tls: cannot listen on {address}; are certificate_file and private_key_file a pair?"
            ) from error
        return port

    def check(self, metadata: Mapping[str, str]) -> None:
        """Check a call's metadata for the secret.

        Raises:
            Unauthenticated: it is not there, or another one.
        """
        self.check_header(metadata.get(AUTHORIZATION, ""))

    def check_header(self, authorization: str) -> None:
        """Check an ``Authorization`` header for the secret.

        Raises:
            Unauthenticated: it is not there, or another one.
        """
        if self._secret and not same_secret(authorization, f"Bearer {self._secret}"):
            raise Unauthenticated("this port is for the cluster's own processes; show the cluster's secret")
