"""The spec's ``gateway.tracing`` section: where spans of requests go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.spec.settings import Settings


class TracingSettings(Settings):
    """OpenTelemetry. Credentials of the collector come as the SDK has it, in ``OTEL_EXPORTER_OTLP_HEADERS``."""

    otlp_endpoint: str = Field(pattern=r"^https?://[^\s/?#]+$")
    """The collector: scheme, host and port, such as `http://collector:4317`; `https` verifies its certificate."""
    protocol: Literal["grpc", "http"] = "grpc"
    """OTLP over gRPC (port 4317 by custom), or over HTTP (4318), to `/v1/traces`."""
    sample_ratio: float = Field(1.0, ge=0, le=1)
    """Share of the requests that are traced; a request with a `traceparent` is traced if that says so."""
