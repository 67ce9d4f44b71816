"""The spec's ``health`` and ``drain`` sections: when a worker counts as lost, and how one is emptied."""

from __future__ import annotations

from pydantic import Field

from cluster.spec.settings import Settings


class DrainSettings(Settings):
    """How a worker is emptied before it is stopped."""

    timeout_s: float = Field(60.0, gt=0)
    """Seconds until a draining worker is stopped with what it still has. A pod's grace period must be longer."""
    moves_at_once: int = Field(4, ge=1)
    """Requests that one gateway moves off a worker at a time. Its stream pauses while it moves; the others run."""


class CanarySettings(Settings):
    """Fixed prompts that every worker answers, alone and behind a handoff, so that a worker that computes wrongly is
    removed from service."""

    enabled: bool = True
    """Ask workers before they serve, and from time to time after."""
    interval_s: float = Field(300.0, gt=0)
    """Seconds after which each worker, and each pair, is asked again; longer where ``max_share`` is reached."""
    max_share: float = Field(0.001, gt=0, le=1)
    """Most of a worker's time in service that this may take."""


class HealthSettings(Settings):
    """When a worker counts as lost. Judged by its progress, not only by its process."""

    interval_s: float = Field(2.0, gt=0)
    """Seconds between the controller's questions."""
    silence_timeout_s: float = Field(15.0, gt=0)
    """Seconds without a word from a worker, which otherwise reports at least once a second."""
    stall_timeout_s: float = Field(30.0, gt=0)
    """Seconds in which an engine that has work makes no step. Above the longest step, a prefill of the whole batch."""
    canary: CanarySettings = CanarySettings()
    """Judging workers by their answers."""
