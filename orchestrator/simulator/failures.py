"""What goes wrong in a run."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FailurePlan:
    """Workers that die, at stated times or at random, and transfers that break.

    Args:
        at: Seconds and worker id.
        mtbf_s: Mean time of a worker between failures, exponential; left out, none at random.
        transfer_share: Share of KV transfers that break at their end.
    """

    at: tuple[tuple[float, str], ...] = ()
    mtbf_s: float | None = None
    transfer_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.transfer_share <= 1 or (self.mtbf_s is not None and self.mtbf_s <= 0):
            raise ConfigError("failures: expected 0 <= transfer_share <= 1 and mtbf_s > 0")
