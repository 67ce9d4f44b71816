"""Against a live cluster on this machine: calibrate the planner on six points, predict twelve others.

Starts one colocated worker with `baton up`, measures every point with `baton bench`, calibrates with
`baton calibrate`, and prints the error of the twelve that it did not see::

    python benchmarks/live_calibration.py --model models/reasoner --out points.json
    python benchmarks/live_calibration.py --points points.json      # the same from what was measured before

The "GPU" is one CPU core: memory bandwidth and bf16 rate are first guesses from docs/lab-notes.md, which the factors
then correct. The constants of the engine are those fitted on H100s, so nothing of this machine is known beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from cluster.hardware.catalogue import GpuSpec
from planner.capacity.calibrate import Errors, calibrate, predict
from planner.capacity.measured import Point, read_points
from planner.capacity.resolve import Problem, resolve
from planner.capacity.spec import ScalesPlan, parse

SIX = ((1, 128, 64), (1, 1024, 64), (4, 256, 128), (8, 512, 64), (16, 128, 128), (8, 1024, 32))
TWELVE = (
    *((1, 256, 128), (1, 512, 32), (2, 128, 128), (2, 1024, 64), (3, 512, 128), (4, 64, 64)),
    *((4, 1024, 64), (6, 256, 64), (8, 128, 128), (12, 512, 64), (16, 256, 64), (16, 512, 128)),
)
STEP_TOKENS = 512


def plan(model: Path) -> Problem:
    core = {
        "memory_bytes": 16e9,
        "hbm_bytes_per_s": 8e9,
        "bf16_flops": 1e11,
        "pcie_bytes_per_s": 4e9,
        "nic_bytes_per_s": 1e9,
        "price_usd_h": 0.04,
    }
    tree = {
        "name": "live-calibration",
        "model": {"config": str(model), "name": "reasoner"},
        "engine": {"max_num_batched_tokens": STEP_TOKENS},
        "hardware": {"gpus": ["cpu-core"], "overrides": {"cpu-core": core}, "tensor_parallel": [1]},
        "workload": {"rate_per_s": 1, "input_tokens": 256, "answer_tokens": 64},
    }
    return resolve(parse(tree))


def cluster(model: Path, port: int) -> dict[str, Any]:
    engine = {"cpu_kv_cache_gib": 1, "max_num_batched_tokens": STEP_TOKENS}
    return {
        "name": "calibration",
        "model": {"path": str(model.resolve()), "served_name": "reasoner", "max_model_len_tokens": 2048},
        "pools": {"colocated": {"replicas": 1, "cpus_per_worker": 1, "engine": engine}},
        "gateway": {"http_port": port, "grpc_port": port + 1},
    }


@contextmanager
def live(model: Path, port: int) -> Iterator[str]:
    """A cluster with one colocated worker; its HTTP address."""
    with tempfile.TemporaryDirectory(prefix="baton-cal-") as folder:
        spec = Path(folder) / "spec.yaml"
        spec.write_text(yaml.safe_dump(cluster(model, port)))
        env = os.environ | {"BATON_CACHE": folder}
        baton("up", "-f", str(spec), "--detach", env=env, timeout_s=600)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            baton("down", env=env, timeout_s=120)


def baton(*arguments: str, env: dict[str, str] | None = None, timeout_s: float) -> str:
    command = [sys.executable, "-m", "interface.cli.main", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(f"baton {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


def measure(url: str, loads: Sequence[tuple[int, int, int]], rounds: int, folder: Path, seed: int) -> list[Point]:
    """One closed loop for each load. A seed of its own keeps prompts of two loads from sharing a prefix."""
    found = []
    for at, (clients, isl, osl) in enumerate(loads):
        out = folder / f"{clients}-{isl}-{osl}.json"
        count = max(12, rounds * clients)
        arguments = ["bench", url, "-c", str(clients), "--isl", str(isl), "--osl", str(osl), "-n", str(count)]
        text = baton(*arguments, "--seed", str(seed + at), "--warmup", "2", "--json", timeout_s=900)
        out.write_text(text)
        found += read_points([out])
        point = found[-1]
        print(
            f"{clients:3d} clients {isl:5d} in {osl:4d} out: TTFT {1e3 * point.ttft_s:7.1f} ms, TPOT "
            f"{1e3 * point.tpot_s:6.2f} ms",
            file=sys.stderr,
            flush=True,
        )
    return found


def report(problem: Problem, gpu: GpuSpec, six: Sequence[Point], twelve: Sequence[Point]) -> dict[str, Any]:
    """Fit on the first, predict the second."""
    found = calibrate(problem, gpu, 1, six, twelve)
    times = predict(problem, gpu, 1, found.scales, twelve)
    rows = []
    for point, (tpot_s, ttft_s) in zip(twelve, times, strict=True):
        rows.append(
            {
                "load": f"{point.clients} x {point.isl_tokens}/{point.osl_tokens}",
                "tpot_ms": round(1e3 * point.tpot_s, 2),
                "predicted_tpot_ms": round(1e3 * tpot_s, 2),
                "ttft_ms": round(1e3 * point.ttft_s, 1),
                "predicted_ttft_ms": round(1e3 * ttft_s, 1),
            }
        )

    def shares(errors: Errors) -> dict[str, float]:
        return {"tpot": round(errors.tpot, 4), "ttft": round(errors.ttft, 4)}

    scales: ScalesPlan = found.scales
    return {
        "factors": {key: round(getattr(scales, key), 3) for key in ("compute", "memory", "overhead")},
        "error_before": shares(found.before),
        "error_after": shares(found.after),
        "predicted": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/reasoner"))
    parser.add_argument("--rounds", type=int, default=4, help="requests of each client")
    parser.add_argument("--port", type=int, default=18_600)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--points", type=Path, help="measured before, by --out")
    parser.add_argument("--out", type=Path, help="write what was measured here")
    parser.add_argument("--small", action="store_true", help="try the script on a few small loads")
    options = parser.parse_args()
    six, twelve = (SIX, TWELVE) if not options.small else (SIX[:5:2], TWELVE[5:6])
    problem = plan(options.model)
    if options.points:
        points = read_points([options.points])
        measured = points[: len(six)], points[len(six) :]
    else:
        with tempfile.TemporaryDirectory() as folder, live(options.model, options.port) as url:
            both = measure(url, (*six, *twelve), options.rounds, Path(folder), options.seed)
        measured = both[: len(six)], both[len(six) :]
        if options.out:
            options.out.write_text(json.dumps({"points": [vars(point) for point in both]}, indent=1))
    print(json.dumps(report(problem, problem.gpus[0], *measured), indent=2))


if __name__ == "__main__":
    main()
