"""The spec's ``transfer`` section: how KV moves."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from cluster.spec.settings import Settings


class Transport(StrEnum):
    """How KV bytes may travel between two workers, best first."""

    NVLINK = "nvlink"
    RDMA = "rdma"
    SHARED_MEMORY = "shared_memory"
    TCP = "tcp"


class TransferSettings(Settings):
    """How KV moves."""

    transports: list[Transport] = Field(default_factory=lambda: list(Transport), min_length=1)
    """Transports that may be used; the best one a pair has in common is chosen."""
    lease_s: int = Field(30, ge=6)
    """Seconds that prefill holds blocks nobody has read; decode's heartbeats renew it."""
    ticket_deadline_s: float = Field(20, gt=0)
    """Seconds after which an unused handoff ticket is refused. Below the lease, or the blocks may be gone."""
    retry_budget: int = Field(2, ge=0)
    """New prefills that one request may have after a failed handoff or a lost worker."""
    local_prefill_below_tokens: int = Field(0, ge=0)
    """Uncached prompt tokens up to which decode prefills by itself, because the handoff would cost more. 0: never."""
    local_prefill_after_s: float | None = Field(1.0, ge=0)
    """Expected seconds in an overloaded prefill pool past which a decode worker prefills by itself, if it would be done
    in less than four fifths of them. null: never."""

    @model_validator(mode="after")
    def _check(self) -> TransferSettings:
        if self.ticket_deadline_s >= self.lease_s:
            raise ValueError("ticket_deadline_s must be below lease_s, or a ticket outlives the blocks it names")
        return self
