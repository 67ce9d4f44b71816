from typing import Any

from benchmarks.result import BARE, BASE, insert, markdown, ratios

OURS = "prefill + decode, http"


def row(contender: str, clients: int, repetition: int, **changes: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s"), 0.01)
    return {
        "contender": contender,
        "clients": clients,
        "repetition": repetition,
        "tokens_per_s": 100.0,
        "cpu_s_per_1k_tokens": None,
        "failed": 0,
        **figures,
        **changes,
    }


def run(ours_ttft: float, ours_tokens: float, ours_itl: float) -> list[dict[str, Any]]:
    rows = []
    for repetition, drift in enumerate((1.0, 3.0, 0.5)):
        rows += [
            row(BASE, 1, repetition, ttft_p50_s=0.1 * drift),
            row(BASE, 32, repetition, tokens_per_s=1000 / drift),
            row(BARE, 1, repetition, itl_p50_s=0.004 * drift),
            row(OURS, 1, repetition, ttft_p50_s=ours_ttft * drift, itl_p50_s=ours_itl * drift),
            row(OURS, 32, repetition, tokens_per_s=ours_tokens / drift),
        ]
    return rows


def test_drift_of_the_machine_cancels_and_bars_cut_where_they_should() -> None:
    good = ratios(run(0.125, 950, 0.0052), [OURS])
    assert [round(each.median, 6) for each in good] == [1.25, 0.95, 1.3]
    assert all(len(each.values) == 3 and max(each.values) - min(each.values) < 1e-9 for each in good)
    assert [each.holds for each in ratios(run(0.12, 960, 0.005), [OURS])] == [True] * 3
    assert [each.holds for each in ratios(run(0.13, 940, 0.0053), [OURS])] == [False] * 3


def test_a_contender_that_was_not_run_has_no_ratio() -> None:
    rows = [each for each in run(1, 1, 1) if each["contender"] != BARE]
    assert [each.bar.title for each in ratios(rows, [OURS, "colocated, http"])] == [
        "TTFT p50, 1 client",
        "tokens/s, 32 clients",
    ]


def test_the_table_goes_between_its_marks_and_replaces_itself() -> None:
    facts = {"cores": 2, "cpu": "c", "memory_gib": 24.0, "python": "3.11", "vllm": "0.32.0", "date": "2026-11-22"}
    facts |= {
        "parameters_m": 3.0,
        "dtype": "float32",
        "isl": 500,
        "osl": 128,
        "repetitions": 3,
        "load_before": [0.1],
        "command": "x",
    }
    rows = run(0.13, 960, 0.005)
    table = markdown(rows, ratios(rows, [OURS]), facts)
    assert "| TTFT p50, 1 client, against vllm server | prefill + decode, http | 1.30 |" in table
    assert table.count("**missed**") == 1
    once = insert("# Benchmarks\n\nWords.\n", table)
    assert insert(once, table) == once
    assert "Words." in once
