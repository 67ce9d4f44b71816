"""What a run leaves: per-request records, the fleet over time, and their summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.spec.config import Role
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet
from planner.simulator.gaps import GapHistogram
from planner.simulator.kernel import Kernel
from planner.simulator.records import Outcome, Records

_POOL_FIELDS = ("workers", "used_blocks", "total_blocks", "requests", "queued_tokens", "gpus")


class Sampler:
    """The fleet's state at even times, as flat rows."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.rows: list[list[float]] = []

    @staticmethod
    def names() -> list[str]:
        """Names of the columns."""
        return ["time_s", "queued", "in_flight", *(f"{role.value}_{name}" for role in Role for name in _POOL_FIELDS)]

    def sample(self, now_s: float, queued: int, in_flight: int) -> None:
        """Take one row."""
        sums = {role: [0.0] * len(_POOL_FIELDS) for role in Role}
        for worker in self._fleet.workers.values():
            row, engine = sums[worker.role], worker.engine
            if worker.state != "gone":
                row[5] += worker.pool.profile.gpus
            if engine is None or worker.standby:
                continue
            engine.sync()
            row[0] += 1
            row[1] += engine.pool.used
            row[2] += engine.pool.total
            row[3] += engine.requests
            row[4] += engine.queued_tokens
        self.rows.append([now_s, queued, in_flight, *(value for role in Role for value in sums[role])])

    def columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """All rows, by column."""
        table = np.array(self.rows, np.float64).reshape(len(self.rows), -1)
        return {name: table[:, index] for index, name in enumerate(self.names())}


@dataclass(frozen=True, eq=False)
class Result:
    """One finished run.

    ``timeline`` maps the names of `Sampler.names` to arrays; ``tokens_out`` counts what clients got.
    """

    records: Records
    gaps: GapHistogram
    timeline: dict[str, npt.NDArray[np.float64]]
    end_s: float
    gpu_s: float
    events: int
    preemptions: int
    transfers: int
    transferred_bytes: float
    prefilled_tokens: int
    found_tokens: int
    workers: tuple[str, ...]

    @classmethod
    def of(cls, kernel: Kernel, records: Records, fleet: Fleet, driver: LegDriver, sampler: Sampler) -> Result:
        """Gather from the parts of a simulation that has run."""
        engines = [worker.engine for worker in fleet.workers.values() if worker.engine is not None]
        return cls(
            records=records,
            gaps=fleet.gaps(),
            timeline=sampler.columns(),
            end_s=kernel.now_s,
            gpu_s=fleet.gpu_s(),
            events=kernel.events,
            preemptions=int(records["preemptions"].sum()),
            transfers=driver.transfers,
            transferred_bytes=driver.transferred_bytes,
            prefilled_tokens=sum(engine.prefilled_tokens for engine in engines),
            found_tokens=sum(engine.blocks.found_tokens for engine in engines),
            workers=tuple(fleet.workers),
        )

    @property
    def tokens_out(self) -> int:
        """Output tokens of finished requests."""
        return int(self.records["output_tokens"][self.records.done()].sum())

    def summary(self, *, ttft_s: float = 2.0, slow_share: float = 0.05) -> dict[str, Any]:
        """Figures for a report; seconds and counts. ``good`` is the share of all requests that met the objectives."""
        records = self.records
        outcome = records["outcome"]
        size = max(1, records.size)
        figures: dict[str, Any] = {
            "requests": records.size,
            "finished": int((outcome == Outcome.FINISHED).sum()),
            "rejected": int((outcome == Outcome.REJECTED).sum()),
            "failed": int((outcome == Outcome.FAILED).sum()),
            "open": int((outcome == Outcome.OPEN).sum()),
            "good": float(records.good(ttft_s=ttft_s, slow_share=slow_share).sum() / size),
            "end_s": self.end_s,
            "output_tokens": self.tokens_out,
            "output_tokens_per_s": self.tokens_out / self.end_s if self.end_s else 0.0,
            "gpu_hours": self.gpu_s / 3600,
            "preemptions": self.preemptions,
            "retries": int(records["retries"].sum()),
            "moves": int(records["moves"].sum()),
            "transfers": self.transfers,
            "transferred_gb": self.transferred_bytes / 1e9,
            "hit_share": float(records["hit_tokens"].sum() / max(1, records["isl_tokens"].sum())),
        }
        for name in ("ttft_s", "ttfat_s", "e2e_s", "tpot_s", "queue_s"):
            values = getattr(records, name)()
            for label, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                figures[f"{name[:-2]}_{label}_s"] = float(np.quantile(values, share)) if len(values) else 0.0
            figures[f"{name[:-2]}_mean_s"] = float(values.mean()) if len(values) else 0.0
        for label, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            figures[f"itl_{label}_s"] = self.gaps.quantile_s(share)
        figures["itl_mean_s"] = self.gaps.mean_s
        for role in Role:
            used, total = self.timeline[f"{role.value}_used_blocks"], self.timeline[f"{role.value}_total_blocks"]
            if total.any():
                figures[f"{role.value}_kv_peak_share"] = float((used / np.maximum(1, total)).max())
                figures[f"{role.value}_kv_mean_share"] = float((used / np.maximum(1, total)).mean())
        return figures
