"""The spec's ``gateway`` and ``tenants`` sections: listeners, limits of requests and of tenants."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from cluster.spec.settings import Settings
from cluster.spec.tracing_settings import TracingSettings

Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s?#@,A-Z]+)$")]
"""As a browser sends it: scheme, host in lower case, and the port where it is not the scheme's own. No path."""


class GatewaySettings(Settings):
    """What callers reach, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; `::` is every address of both IP families."""
    grpc_port: int = Field(50051, ge=0, le=65535)
    """gRPC port; 0 takes a free one."""
    http_port: int = Field(8000, ge=0, le=65535)
    """OpenAI HTTP port; 0 takes a free one."""
    metrics_port: int = Field(9090, ge=0, le=65535)
    """Prometheus port; 0 takes a free one."""
    replicas: int = Field(1, ge=1, le=64)
    """Gateways that serve at once. On one machine each takes the ports after the last one's; 0 stays 0."""
    max_queued_requests: int = Field(256, ge=0)
    """Requests that may wait for workers before new ones are refused."""
    max_streams: int = Field(4096, ge=1)
    """Requests that one gateway holds at once, running and waiting, before new ones are refused."""
    max_request_bytes: int = Field(4 << 20, ge=1024)
    """Largest gRPC message or HTTP body."""
    max_header_bytes: int = Field(16 << 10, ge=1024)
    """Most gRPC metadata of a call; and the longest HTTP header line."""
    max_streams_per_connection: int = Field(4096, ge=1)
    """gRPC streams that one connection may have open."""
    body_timeout_s: float = Field(30, gt=0)
    """Seconds in which an HTTP body must have come, and an idle HTTP connection must send its next request."""
    slow_reader_timeout_s: float = Field(60, gt=0)
    """Seconds that a reply may wait for its reader to take the next piece before the request is ended."""
    http_keep_alive_s: float | None = Field(15, gt=0)
    """Seconds of silence after which an HTTP stream gets a comment, so that no proxy closes it; null sends none."""
    access_log: bool = False
    """Log a line for each call: method, status, bytes, duration, peer, tenant and request id; no text."""
    tracing: TracingSettings | None = None
    """Spans of each request by OpenTelemetry; left out, none."""
    cors_origins: tuple[Origin, ...] = ()
    """Origins (`https://chat.example`) whose pages may use the HTTP interface; `*` alone is every one."""
    max_stored_responses: int = Field(1024, ge=0)
    """Responses that each gateway keeps for `previous_response_id`, in memory, the newest; 0 keeps none."""
    max_stored_responses_bytes: int = Field(256 << 20, ge=0)
    """Most bytes of them; what the responses of one conversation share is in each."""
    max_stored_response_age_s: float = Field(86400, gt=0)
    """Seconds that they are kept at most."""
    max_choices: int = Field(16, ge=1)
    """Largest ``n``."""
    max_logprobs: int = Field(20, ge=0)
    """Most alternatives per token."""
    max_prompt_logprobs: int = Field(1 << 20, ge=0, le=4 << 20)
    """Most log-probabilities of one prompt: its tokens, times the alternatives and one. 0 refuses them."""
    default_deadline_s: float = Field(3600, gt=0)
    """Deadline of a request that names none."""
    default_max_tokens: int | None = Field(None, ge=1)
    """Output limit of a request that names none; left out, what fits the model's length."""
    forecast_osl_tokens: int = Field(512, ge=1)
    """Output length assumed before any request has finished, for reserving KV."""

    @field_validator("cors_origins")
    @classmethod
    def _any_stands_alone(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in origins and len(origins) > 1:
            raise ValueError("expected * alone, or origins without it")
        return origins


class TenantSettings(Settings):
    """What one tenant may have. Limits are of the cluster: each gateway holds its share of them."""

    weight: float = Field(1.0, gt=0, le=1e6)
    """Share of the tokens while several tenants wait: twice the weight, twice the tokens."""
    max_in_flight: int | None = Field(None, ge=1)
    """Most requests at once; left out, no limit."""
    tokens_per_s: float | None = Field(None, gt=0)
    """Most prompt and output tokens a second over time; left out, no limit."""
    burst_tokens: float | None = Field(None, gt=0)
    """Tokens that may come at once before the rate holds; left out, ten seconds of the rate."""
    max_priority: int = Field(1000, ge=-1000, le=1000)
    """Highest priority that the tenant's requests may claim; a higher one counts as this."""
    max_branches: int | None = Field(None, ge=1)
    """Most traces for one answer (`inference_scaling`); left out, ``gateway.max_choices``."""
    max_answer_usd: float | None = Field(None, gt=0)
    """Most dollars for one such answer, by the cost section's prices; a request's own budget holds where it is less."""
    usd_per_day: float | None = Field(None, gt=0)
    """Most dollars of all requests over a day, by the cost section's prices; left out, no limit."""
