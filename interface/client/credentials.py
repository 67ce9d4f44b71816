"""What a client shows and which authority it trusts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from cluster.errors import ConfigError
from cluster.rpc_guard import AUTHORIZATION, Metadata
from cluster.secret_file import read_bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a client calls gateways. TLS is used when ``tls`` is set or any file is given.

    Args:
        api_key: Key or token, sent with every call; never in a repr.
        tls: Use TLS and trust the authorities that gRPC ships.
        ca_file: PEM authority to trust in place of those.
        certificate_file: PEM chain that the client shows (mTLS), with ``private_key_file``.
        private_key_file: Its key.
        server_name: Name that the server's certificate must have, where it is not the address's.

    Example:
        >>> Credentials(api_key="baton-abc")
        Credentials(tls=False, ca_file=None, certificate_file=None, private_key_file=None, server_name='')
    """

    api_key: str = field(default="", repr=False)
    tls: bool = False
    ca_file: Path | None = None
    certificate_file: Path | None = None
    private_key_file: Path | None = None
    server_name: str = ""

    @classmethod
    def from_files(cls, key_file: Path | None, ca_file: Path | None, **more: Any) -> Credentials:
        """With the key read from a file, so that it stands on no command line.

        Raises:
            ConfigError: a file cannot be read.
        """
        key = ""
        if key_file is not None:
            key = read_bytes(str(key_file), "--key-file").decode(errors="replace").strip()
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(f"--key-file={key_file}: expected one line of printable ASCII")
        return cls(api_key=key, ca_file=ca_file, **more)

    @property
    def metadata(self) -> Metadata:
        """Metadata of every call."""
        return ((AUTHORIZATION, f"Bearer {self.api_key}"),) if self.api_key else ()

    def channel(self, module: Any, address: str, options: Sequence[tuple[str, Any]]) -> Any:
        """A channel of ``module``: ``grpc`` or ``grpc.aio``.

        Raises:
            ConfigError: a file cannot be read.
        """
        files = (self.ca_file, self.certificate_file, self.private_key_file)
        if not self.tls and not any(files):
            return module.insecure_channel(address, options=options)
        ca, certificate, private_key = (
            read_bytes(str(path), name) if path else None
            for path, name in zip(files, ("ca_file", "certificate_file", "private_key_file"), strict=True)
        )
        credentials = grpc.ssl_channel_credentials(ca, private_key, certificate)
        named = [*options, ("grpc.ssl_target_name_override", self.server_name)] if self.server_name else options
        return module.secure_channel(address, credentials, options=named)
