"""Authentication of callers by key or token, and TLS. Both servers of a gateway share one."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
import jwt

from cluster.errors import ConfigError, Unauthenticated
from cluster.model.model_path import expand
from cluster.rpc_guard import AUTHORIZATION, Guard
from cluster.secret_file import MIN_SECRET_CHARS, read_bytes
from cluster.spec.config import SecuritySettings
from cluster.spec.security_settings import JwtSettings
from interface.api_keys import PREFIX, ApiKeys, Caller
from interface.status import trailing_metadata

JWT_LEEWAY_S = 30
MAX_CREDENTIAL_CHARS = 8192

current_caller: ContextVar[Caller | None] = ContextVar("current_caller", default=None)
"""The caller, within a request's task; None where none is required."""


class Authentication:
    """Owns the keys, token settings and TLS of one gateway. Files are read here, at the start.

    Raises:
        ConfigError: a file cannot be used.
    """

    def __init__(self, security: SecuritySettings | None = None) -> None:
        self._security = security or SecuritySettings()
        path = self._security.api_keys_file
        self._keys = ApiKeys(Path(expand(path))) if path else None
        self._jwt = self._security.jwt
        self._jwt_key = _jwt_key(self._jwt) if self._jwt else b""

    @property
    def is_guarded(self) -> bool:
        """Whether callers need a key or token."""
        return self._keys is not None or self._jwt is not None

    def check(self, authorization: str) -> Caller | None:
        """The caller, by an ``Authorization`` header; None where no key is required.

        Raises:
            Unauthenticated: no key, or one that is not valid.
        """
        if not self.is_guarded:
            return None
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip()
        if scheme.lower() != "bearer" or not credential or len(credential) > MAX_CREDENTIAL_CHARS:
            raise Unauthenticated("show a valid key: Authorization: Bearer KEY")
        if self._keys is not None and (self._jwt is None or credential.startswith(f"{PREFIX}-")):
            return self._keys.check(credential)
        assert self._jwt is not None
        return self._token_caller(credential, self._jwt)

    def _token_caller(self, token: str, settings: JwtSettings) -> Caller:
        try:
            claims = jwt.decode(
                token,
                self._jwt_key,
                algorithms=[settings.algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=JWT_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except (jwt.PyJWTError, ValueError):
            raise Unauthenticated("the token is not valid") from None
        tenant = claims.get(settings.tenant_claim)
        if not isinstance(tenant, str) or not 0 < len(tenant) <= 256:
            raise Unauthenticated("the token names no tenant")
        return Caller(tenant)

    # --- gRPC -----------------------------------------------------------------------------------------------

    def guards(self) -> list[Any]:
        """Interceptors of the gRPC server."""

        def check(metadata: Mapping[str, str]) -> None:
            current_caller.set(self.check(metadata.get(AUTHORIZATION, "")))

        return [Guard(check, trailing_metadata)] if self.is_guarded else []

    def bind(self, server: Any, address: str) -> int:
        """Listen, with TLS where the spec says so; returns the port.

        Raises:
            ConfigError: certificate and key do not fit.
            RuntimeError: the address cannot be listened on.
        """
        tls = self._security.tls
        if tls is None:
            port: int = server.add_insecure_port(address)
            return port
        self.ssl_context()  # gRPC would say of a bad pair of files no more than that it could not bind
        ca = read_bytes(tls.client_ca_file, "security.tls.client_ca_file") if tls.client_ca_file else None
        pair = (
            read_bytes(tls.private_key_file, "security.tls.private_key_file"),
            read_bytes(tls.certificate_file, "security.tls.certificate_file"),
        )
        credentials = grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)
        bound: int = server.add_secure_port(address, credentials)
        return bound

    # --- HTTP -----------------------------------------------------------------------------------------------

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS of the HTTP listener; None for plaintext.

        Raises:
            ConfigError: certificate and key do not fit, or a file is no PEM.
        """
        tls = self._security.tls
        if tls is None:
            return None
        for name in ("certificate_file", "private_key_file"):
            read_bytes(getattr(tls, name), f"security.tls.{name}")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # An empty passphrase, so that a key which has one fails and does not ask the terminal.
            context.load_cert_chain(expand(tls.certificate_file), expand(tls.private_key_file), password="")
        except (ssl.SSLError, OSError):
            raise ConfigError(
                "security.tls: certificate_file and private_key_file are no pair of PEM files without passphrase"
            ) from None
        if tls.client_ca_file:
            ca = read_bytes(tls.client_ca_file, "security.tls.client_ca_file")
            try:
                context.load_verify_locations(cadata=ca.decode("ascii"))
            except (ssl.SSLError, UnicodeDecodeError):
                raise ConfigError("security.tls.client_ca_file: no PEM certificates in it") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _jwt_key(settings: JwtSettings) -> bytes:
    key = read_bytes(settings.key_file, "security.jwt.key_file").strip()
    if settings.algorithm == "HS256":
        if len(key) < MIN_SECRET_CHARS:
            raise ConfigError(f"security.jwt.key_file: expected at least {MIN_SECRET_CHARS} bytes for HS256")
        return key
    try:
        jwt.get_algorithm_by_name(settings.algorithm).prepare_key(key)
    except (jwt.PyJWTError, ValueError, TypeError):
        raise ConfigError(f"security.jwt.key_file: no public key for {settings.algorithm}") from None
    return key
