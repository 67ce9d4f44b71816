"""The spec's ``security`` section: TLS, keys and the cluster's own credential."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.spec.settings import Settings


class ListenerTls(Settings):
    """TLS of the gateway's listeners. Files, so that Kubernetes mounts them from a Secret; read at start."""

    certificate_file: str = Field(min_length=1)
    """PEM certificate chain that callers are shown."""
    private_key_file: str = Field(min_length=1)
    """PEM private key of the certificate, without a passphrase."""
    client_ca_file: str | None = None
    """PEM certificates that a caller's certificate must be signed by (mTLS); left out, callers need none."""


class InternalTls(Settings):
    """Mutual TLS between gateways, workers and the controller. The files must be on every node."""

    ca_file: str = Field(min_length=1)
    """PEM certificates that every peer's certificate must be signed by; an authority for this cluster alone."""
    certificate_file: str = Field(min_length=1)
    """PEM certificate chain of this side, for both client and server use."""
    private_key_file: str = Field(min_length=1)
    """PEM private key of the certificate, without a passphrase."""
    server_name: str = Field("baton.internal", min_length=1)
    """Name that all certificates carry as a DNS subject alternative name: workers are called by address."""


class JwtSettings(Settings):
    """Bearer tokens signed by an identity provider, as an alternative to keys."""

    algorithm: Literal["RS256", "ES256", "EdDSA", "HS256"]
    """The one algorithm accepted; a token's own header is not asked."""
    key_file: str = Field(min_length=1)
    """PEM public key, or for HS256 a secret of at least 32 bytes."""
    issuer: str = Field(min_length=1)
    """``iss`` that tokens must have."""
    audience: str = Field(min_length=1)
    """``aud`` that tokens must have."""
    tenant_claim: str = Field("tenant", min_length=1)
    """Claim that names the tenant. A token without it is refused."""


class SecuritySettings(Settings):
    """Callers to serve and authorities to trust. Secrets are in files, none in the spec: docs/security.md."""

    tls: ListenerTls | None = None
    """TLS of gRPC and HTTP; left out, plaintext."""
    internal_tls: InternalTls | None = None
    """Mutual TLS of gateway to worker and gateway to registry; left out, plaintext."""
    cluster_secret_file: str | None = Field(None, min_length=1)
    """File with the secret that gateways show to workers and to the registry; at least 32 characters, the same on
    every node. Left out, none is asked for."""
    api_keys_file: str | None = Field(None, min_length=1)
    """YAML file with hashes of keys, made by `baton keys`; read again when it changes. With it or ``jwt``, nothing but
    health answers without a valid key."""
    jwt: JwtSettings | None = None
    """Signed tokens accepted beside keys."""
    open_metrics: bool = False
    """Serve metrics without key and TLS even where both are on, for a scraper in an isolated network."""
    log_text: bool = False
    """Log prompts and answers. Off: no log has a word of either."""
