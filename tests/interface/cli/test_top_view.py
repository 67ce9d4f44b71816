from __future__ import annotations

import io
import re

from rich.console import Console

from baton.v1 import cluster_pb2 as pb
from interface.cli.status_command import render
from interface.cli.top_view import TopView


def status(*, scaling: bool = True) -> pb.Status:
    workers = [
        pb.WorkerStatus(worker_id=name, role=role, state=pb.WORKER_STATE_READY, total_blocks=100, used_blocks=used)
        for name, role, used in (
            ("prefill-0", pb.ROLE_PREFILL, 5),
            ("decode-0", pb.ROLE_DECODE, 95),
            ("decode-1", pb.ROLE_DECODE, 60),
        )
    ]
    workers.append(pb.WorkerStatus(worker_id="decode-2", role=pb.ROLE_DECODE, state=pb.WORKER_STATE_STANDBY))
    found = pb.Status(cluster="here", model="reasoner", workers=workers)
    found.lengths.add(phase="reasoning", requests=420, p50_tokens=310, p90_tokens=1850, p99_tokens=4000)
    if scaling:
        found.scaling.CopyFrom(
            pb.Scaling(
                pools=[
                    pb.PoolScaling(role=pb.ROLE_PREFILL, ready=1, min_replicas=1, max_replicas=2),
                    pb.PoolScaling(role=pb.ROLE_DECODE, ready=2, starting=1, min_replicas=1, max_replicas=6),
                ],
                demand=pb.DemandForecast(
                    kv_tokens=900_000, kv_high_tokens=1_500_000, start_s=80, worker_kv_tokens=600_000,
                    band_low_tokens=800_000, band_mean_tokens=1_000_000, band_high_tokens=1_250_000,
                    prefill_workers=0.7, arrivals_per_s=4.2, prompt_tokens_per_s=2100, in_flight_requests=310,
                    request_tokens_per_s=42, pace=0.62,
                ),
                decisions=[pb.ScalingDecision(age_s=95, reason="decode 2 -> 3: KV 0.90 M tokens")],
                reason="no change: the prompts of the last five minutes want 0.7 prefill workers",
                thinking_severity=0.25,
            )
        )  # fmt: skip
    return found


def text_of(draw: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(draw)
    return console.export_text()


def test_the_screen_reports_pools_demand_band_decisions_and_lengths() -> None:
    view = TopView()
    view.render(status())
    text = text_of(view.render(status()))
    for words in (
        "1 to 6", "95 % under, in 80 s", "1.50 M", "2 ready × 600.0 k", "1.20 M", "800.0 k to 1.25 M",
        "95 s ago", "decode 2 -> 3", "want 0.7 prefill workers", "pace 0.62", "severity 0.25", "1,850",
    ):  # fmt: skip
        assert words in text, words
    assert re.search(r"decode +2 +1 +1 +0 +1 to 6", text)  # ready, on standby, starting, draining
    assert "██" in text  # two ticks of the curve


def test_without_an_autoscaler_it_says_how_to_get_one() -> None:
    text = text_of(TopView().render(status(scaling=False)))
    assert "autoscaling.enabled" in text
    assert "fixed" in text


def test_the_plain_status_has_the_autoscaler_in_two_lines() -> None:
    text = text_of(render(status()), width=200)
    assert "95 % under 1,500,000 in 80 s" in text
    assert "last change 95 s ago: decode 2 -> 3" in text
    assert re.search(r"decode-2 +decode +standby", text)
    assert "autoscaler" not in text_of(render(status(scaling=False)))
