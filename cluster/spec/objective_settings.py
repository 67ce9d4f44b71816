"""The spec's ``slo`` and ``cost`` sections: what requests should take, and what workers cost."""

from __future__ import annotations

from pydantic import Field

from cluster.spec.settings import Settings


class SloSettings(Settings):
    """Service level objectives, for goodput and for the planner."""

    ttft_p95_s: float = Field(2.0, gt=0)
    """95th percentile of time to first token."""
    itl_p95_s: float = Field(0.05, gt=0)
    """95th percentile of the gap between tokens."""
    ttfat_p95_s: float | None = Field(None, gt=0)
    """95th percentile of time to first answer token."""
    e2e_p95_s: float | None = Field(None, gt=0)
    """95th percentile of the whole request."""


class CostSettings(Settings):
    """Prices, so that a reply can say what it cost. Dated by the author of the spec; never truth."""

    usd_per_accelerator_hour: float = Field(0, ge=0)
    """Price of one GPU for an hour."""
    usd_per_cpu_hour: float = Field(0, ge=0)
    """Price of one CPU core for an hour."""
