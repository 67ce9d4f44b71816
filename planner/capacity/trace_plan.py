"""The ``workload.trace`` block of a plan."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.spec.settings import Settings


class TracePlan(Settings):
    """A trace file whose rate and lengths a plan takes; what the plan says itself goes before it."""

    path: str = Field(min_length=1)
    """Relative to the plan."""
    format: str = "auto"
    """Name of a format; auto finds it."""
    unit: Literal["auto", "s", "ms", "us", "ns"] = "auto"
    """Of times that are numbers; auto takes the format's own."""
    tokenizer: str | None = None
    """A tokenizer.json or the folder of one, for text."""
    chars_per_token: float | None = Field(None, gt=0)
    """In place of a tokenizer, an estimate."""
    block_tokens: int | None = Field(None, ge=1)
    """Prompt tokens to one of hash_ids."""
    quantiles_path: str | None = None
    """ServeGen only."""
    start_s: float = Field(0.0, ge=0)
    """Take the requests from here, seconds."""
    end_s: float | None = Field(None, gt=0)
    """Up to here."""
    summary: list[str] = Field(default_factory=list)
    """What was read; written when the plan is read, so that a lock file needs no trace."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value
