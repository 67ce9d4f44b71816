"""Percentiles, rates and goodput out of the records of a run. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.record import RequestRecord

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives of one request, in seconds; None is not asked. ``itl_s`` holds for the 95th percentile of its gaps."""

    ttft_s: float | None = None
    ttfat_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    @property
    def asked(self) -> dict[str, float]:
        """Those that are set."""
        pairs = {"ttft_s": self.ttft_s, "ttfat_s": self.ttfat_s, "itl_s": self.itl_s, "e2e_s": self.e2e_s}
        return {name: value for name, value in pairs.items() if value is not None}

    def met_by(self, record: RequestRecord) -> bool:
        """Whether a request ended well and within every objective. What cannot be seen is not met."""
        gaps = record.gaps_s()
        seen = {
            "ttft_s": record.ttft_s,
            "ttfat_s": record.first_answer_s,
            "itl_s": float(np.percentile(gaps, 95)) if gaps else 0.0,
            "e2e_s": record.e2e_s,
        }
        return record.ok and all((value := seen[name]) is not None and value <= top for name, top in self.asked.items())


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, extremes and percentiles (linear between ranks, as numpy's default); None of nothing.

    Example:
        >>> spread([1.0, 2.0, 3.0])["p50"]
        2.0
    """
    if not len(values):
        return None
    found = np.percentile(values, PERCENTILES)
    return {
        **{f"p{percentile}": float(value) for percentile, value in zip(PERCENTILES, found, strict=True)},
        "mean": float(np.mean(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def summarise(
    records: Sequence[RequestRecord],
    *,
    duration_s: float,
    slo: Slo,
    server_cpu_s: float | None,
    client_cpu_s: float,
) -> dict[str, Any]:
    """Everything that is reported of a run. Latencies and tokens are of requests that ended well."""
    good = [record for record in records if record.ok]
    tokens = sum(record.output_tokens for record in good)
    all_tokens = sum(record.output_tokens for record in records)
    met = sum(slo.met_by(record) for record in records) if slo.asked else None
    return {
        "duration_s": duration_s,
        "requests": len(records),
        "completed": len(good),
        "failed": len(records) - len(good),
        "failures": dict(Counter(record.failure for record in records if not record.ok)),
        "failure_details": {record.failure: record.detail for record in reversed(records) if not record.ok},
        "prompt_tokens": sum(record.prompt_tokens or record.isl_tokens for record in good),
        "output_tokens": tokens,
        "reasoning_tokens": sum(record.reasoning_tokens for record in good),
        "output_tokens_per_s": tokens / duration_s if duration_s else 0.0,
        "requests_per_s": len(good) / duration_s if duration_s else 0.0,
        "ttft_s": spread([value for record in good if (value := record.ttft_s) is not None]),
        "ttfat_s": spread([value for record in good if (value := record.first_answer_s) is not None]),
        "itl_s": spread([gap for record in good for gap in record.gaps_s()]),
        "tpot_s": spread([value for record in good if (value := record.tpot_s) is not None]),
        "e2e_s": spread([value for record in good if (value := record.e2e_s) is not None]),
        "tokens_per_message": tokens / max(1, sum(len(record.message_s) for record in good)),
        "slo": slo.asked,
        "slo_met": met,
        "goodput_requests_per_s": None if met is None or not duration_s else met / duration_s,
        "max_lag_s": max((record.lag_s for record in records), default=0.0),
        "server_cpu_s": server_cpu_s,
        "server_cpu_s_per_1k_tokens": server_cpu_s * 1000 / all_tokens if server_cpu_s is not None and tokens else None,
        "client_cpu_s": client_cpu_s,
        "client_cpu_share_of_core": client_cpu_s / duration_s if duration_s else 0.0,
        "client_cpu_us_per_token": client_cpu_s * 1e6 / all_tokens if all_tokens else None,
    }
