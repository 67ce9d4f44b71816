"""Readers, generators, changes and fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError
from planner.simulator.arrivals import Gaps, Profile, arrivals, bridge
from planner.simulator.block import WorkloadBlock
from planner.simulator.fit import correlation, fit, fit_gaps, fit_lengths
from planner.simulator.lengths import LogNormal, Mixture, sample, sample_pair
from planner.simulator.servegen import ServeGen
from planner.simulator.traces import READERS, detect, read_log, write_log
from planner.simulator.workload import Change, Workload


def lognormals(size: int, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    reasoning, answer = sample_pair(LogNormal(800, 1.0), LogNormal(300, 0.7), 0.4, size, rng)
    return Workload(np.sort(rng.uniform(0, size / 10, size)), sample(LogNormal(500, 1.1), size, rng), reasoning, answer)


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
    )
    assert detect(path) == "azure"
    workload = READERS["azure"](path)
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 4.314579])
    assert workload.isl_tokens.tolist() == [374, 396]


def test_mooncake(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 1500, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    workload = READERS[detect(path)](path)
    assert workload.arrival_s.tolist() == [1.5]
    assert workload.units_of(0) == (0, 1)  # the third unit is not full


def test_log_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written = lognormals(100)
    write_log(written, path)
    assert detect(path) == "log"
    read = read_log(path)
    assert (read.isl_tokens == written.isl_tokens).all() and (read.answer_tokens == written.answer_tokens).all()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"arrival_s": 0, "isl_tokens": 1, "answer_tokens": 1}', "line 1: reasoning_tokens is missing"),
        ('{"arrival_s": 0, "isl_tokens": 1, "reasoning_tokens": 0, "answer_tokens": 1, "x": 1}', "unknown key x"),
        ('{"arrival_s": 0, "isl_tokens": 0, "reasoning_tokens": 0, "answer_tokens": 1}', "isl_tokens >= 1"),
    ],
)
def test_bad_logs_name_the_problem(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_log(path)


@pytest.mark.parametrize("gaps", [Gaps(), Gaps("gamma", 0.3), Gaps("weibull", 0.6), Gaps("gamma", 4.0)])
def test_gaps_have_the_stated_rate_and_spread(gaps: Gaps) -> None:
    times = arrivals(gaps, Profile.steady(20.0), 5000.0, np.random.default_rng(0))
    between = np.diff(times)
    assert len(times) / 5000.0 == pytest.approx(20.0, rel=0.02)
    assert between.std() / between.mean() == pytest.approx(gaps.cv, rel=0.05)


def test_a_day_has_its_peak() -> None:
    times = arrivals(Gaps(), Profile.diurnal(2.0, 0.8), 86400.0, np.random.default_rng(0))
    counts = np.histogram(times, 24, (0, 86400))[0]
    assert counts.argmax() in (13, 14) and counts.argmin() in (1, 2)
    assert counts.max() / counts.min() == pytest.approx(1.8 / 0.2, rel=0.2)


def test_a_bridge_keeps_count_and_bursts() -> None:
    rng = np.random.default_rng(0)
    times = [bridge(Gaps("gamma", 0.1), 60, 600.0, 600.0, rng) for _ in range(200)]
    assert all(len(each) == 60 and each.min() >= 600 and each.max() < 1200 for each in times)
    between = np.concatenate([np.diff(each) for each in times])
    assert 1.8 < between.std() / between.mean() < 3.3


def test_changes_do_what_they_say() -> None:
    base, rng = lognormals(20_000), np.random.default_rng(1)
    tripled = Change(reasoning=3.0, spread=0.5).apply(base, rng)
    assert tripled.reasoning_tokens.mean() == pytest.approx(3 * base.reasoning_tokens.mean(), rel=0.01)
    cv = [each.reasoning_tokens.std() / each.reasoning_tokens.mean() for each in (base, tripled)]
    assert cv[1] < 0.6 * cv[0]
    assert len(Change(rate=2.5).apply(base, rng)) == pytest.approx(50_000, rel=0.02)
    assert len(Change(rate=0.3).apply(base, rng)) == pytest.approx(6_000, rel=0.05)
    assert Change().apply(base, rng).osl_tokens.sum() == base.osl_tokens.sum()


def test_repeated_prompts_are_other_prompts() -> None:
    base = Workload(
        np.zeros(2),
        np.full(2, 600),
        np.zeros(2, int),
        np.ones(2, int),
        unit_starts=np.array([0, 1, 2]),
        units=np.array([0, 0]),
        unit_tokens=512,
    )
    doubled = Change(rate=2.0).apply(base, np.random.default_rng(0))
    assert sorted(doubled.units.tolist()) == [0, 0, 1, 1]


def test_a_fit_finds_what_was_drawn() -> None:
    base = lognormals(20_000)
    block, report = fit(base)
    phase = block["workload"]["phases"][0]
    assert phase["reasoning_tokens"]["kind"] == "lognormal"
    assert phase["reasoning_tokens"]["median_tokens"] == pytest.approx(800, rel=0.05)
    assert phase["reasoning_tokens"]["sigma"] == pytest.approx(1.0, rel=0.03)
    assert phase["correlation"] == pytest.approx(0.4, abs=0.03)
    assert phase["arrivals"]["rate_per_s"] == pytest.approx(10.0, rel=0.02)
    assert all(each.ks < 0.03 for each in report)
    again = WorkloadBlock.model_validate(block["workload"]).build()
    assert again.osl_tokens.mean() == pytest.approx(base.osl_tokens.mean(), rel=0.05)


def test_a_mixture_is_found() -> None:
    rng = np.random.default_rng(0)
    tokens = sample(Mixture(((0.7, LogNormal(100, 0.3)), (0.3, LogNormal(5000, 0.4)))), 20_000, rng)
    block, goodness = fit_lengths("osl", tokens, rng)
    assert block["kind"] == "mixture" and goodness.ks < 0.03
    medians = sorted(part["median_tokens"] for part in block["parts"])
    assert medians == pytest.approx([100, 5000], rel=0.1)


@pytest.mark.parametrize("gaps", [Gaps(), Gaps("gamma", 0.4), Gaps("weibull", 0.55)])
def test_the_family_of_gaps_is_found(gaps: Gaps) -> None:
    times = arrivals(gaps, Profile.diurnal(5.0, 0.5), 20_000.0, np.random.default_rng(5))
    found, _ = fit_gaps(times)
    assert found.cv == pytest.approx(gaps.cv, rel=0.1)


def test_correlation_of_ranks() -> None:
    values = np.arange(100)
    assert correlation(values, values) == 0.99
    assert correlation(values, np.ones(100, np.int64)) == 0.0


def test_blocks_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either trace or phases"):
        WorkloadBlock()
    with pytest.raises(ConfigError, match="cannot read the trace"):
        WorkloadBlock.model_validate({"trace": {"path": "none.csv"}}).build(tmp_path)


def test_public_traces(data: Path) -> None:
    sizes = {
        "azure_llm_2023_conv.csv": 19_366,
        "azure_llm_2023_code.csv": 8_819,
        "mooncake_conversation_first45min.jsonl": 8_940,
        "servegen_r1_shift_1h.csv": 47_416,
    }
    for name, size in sizes.items():
        assert len(READERS[detect(data / name)](data / name)) == size


def test_a_servegen_day_meets_the_published_aggregate(data: Path) -> None:
    day = ServeGen.read(data / "servegen_r1_client_windows.csv", data / "servegen_r1_length_quantiles.csv")
    workload = day.draw(np.random.default_rng(0))
    truth = np.genfromtxt(data / "servegen_r1_aggregate_10min.csv", delimiter=",", names=True)
    window = (workload.arrival_s // 600).astype(int)
    rate = np.bincount(window, minlength=144) / 600
    assert np.abs(rate / truth["rate_rps"] - 1).max() < 0.01
    for tokens, column in ((workload.osl_tokens, "decode_demand_tok_s"), (workload.isl_tokens, "prefill_demand_tok_s")):
        demand = np.bincount(window, tokens, minlength=144) / 600
        assert demand.sum() / truth[column].sum() == pytest.approx(1.0, abs=0.05)
        assert np.abs(demand / truth[column] - 1).mean() < 0.05
