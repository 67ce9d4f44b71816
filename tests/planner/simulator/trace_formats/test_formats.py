"""What each format has of its own, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError
from planner.simulator.trace_formats import summary
from planner.simulator.trace_formats.mooncake import fitting_block
from planner.simulator.trace_formats.reading import TraceOptions, TraceReading
from planner.simulator.traces import load

from .samples import SOME, aiperf, azure, azure_2025, burstgpt_3, guidellm, lines, mooncake

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def read(tmp_path: Path, text: str, options: TraceOptions | None = None) -> TraceReading:
    path = tmp_path / "trace"
    path.write_text(text)
    return load(path, options or TraceOptions())


def refused(tmp_path: Path, text: str, options: TraceOptions | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text, options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- dates


@pytest.mark.parametrize(
    "form",
    [
        "{:%Y-%m-%d %H:%M:%S.%f}+00:00",
        "{:%Y-%m-%dT%H:%M:%S.%f}Z",
        "{:%Y-%m-%d %H:%M:%S.%f}",
        "{:%Y-%m-%d %H:%M:%S.%f}0",
        "{:%Y-%m-%d %H:%M:%S.%f}+05:30",
        '"{:%Y-%m-%d %H:%M:%S.%f}-0800"',
        "{:%Y-%m-%dt%H:%M:%S.%f}z",
        "{:%Y/%m/%d %H:%M:%S.%f} UTC",
        "{:%Y-%m-%d %H:%M:%S.%f} +0200",
    ],
)
def test_dates_of_azure_in_every_form(tmp_path: Path, form: str) -> None:
    workload = read(tmp_path, azure(SOME, form)).workload
    assert workload.arrival_s.tolist() == pytest.approx([at / 1000 for at, *_ in SOME])


def test_azure_2024_has_dates_with_and_without_a_fraction(tmp_path: Path) -> None:
    rows = ("2024-05-12 00:00:00+00:00,10,2", "2024-05-12 00:00:01.500000+00:00,10,2", "2024-05-11T16:00:02-08:00,10,2")
    reading = read(tmp_path, HEADER + "\n".join(rows))
    assert reading.workload.arrival_s.tolist() == [0.0, 1.5, 2.0]
    assert "2024-05-12 00:00:00 to 00:00:02 UTC" in summary.lines(reading)[0]
    assert not reading.notes


def test_azure_2025_says_how_many_carry_images(tmp_path: Path) -> None:
    reading = read(tmp_path, azure_2025(SOME))
    carrying = sum(isl % 3 > 0 for _, isl, _ in SOME)
    assert f"{carrying} requests carry images (NumImages); only ContextTokens counts as prompt" in reading.notes


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2024-05-12 00:00:00,1,2\n2024-05-12 00:00:01Z,1,2", "line 3: TIMESTAMP: '2024-05-12 00:00:01Z' has the zone"),
        ("0.5,1,2", "line 2: TIMESTAMP: '0.5' is a number, not a date: say its unit with --unit s, ms or us"),
        ("2024-05-12 00:00:00,1", "line 2: 2 values under a header of 3"),
        ("2024-05-12 00:00:00,1,2,3", "line 2: 4 values under a header of 3"),
        ("2024-05-12 00:00:00,-1,2", "line 2: ContextTokens: '-1' is no token count"),
        ("2024-05-12 00:00:00,1.5,2", "line 2: ContextTokens: '1.5' is no whole number"),
        ("2024-05-12 00:00:00,1,99999999999999999999", "is no token count (0 to 10,000,000)"),
        ("2024-05-12 00:00:00,many,2", "'many' is no number"),
        ("2024-05-32 00:00:00,1,2", "is no date such as"),
        ("3024-05-12 00:00:00,1,2", "outside the years 1970 to 2099"),
        ("2024-05-12 00:00:00,1,2\n2044-05-12 00:00:00,1,2", "times lie 20 years apart"),
    ],
)
def test_a_damaged_row_is_refused_by_its_line(tmp_path: Path, row: str, said: str) -> None:
    assert said in refused(tmp_path, HEADER + row)


def test_numbers_of_azure_take_the_unit_that_is_said(tmp_path: Path) -> None:
    text = HEADER + "0,1,2\n1500,1,2\n"
    assert read(tmp_path, text, TraceOptions(unit="ms")).workload.duration_s == 1.5
    assert read(tmp_path, text, TraceOptions(unit="s")).workload.duration_s == 1500


# --- tables


@pytest.mark.parametrize(
    "header", ["timestamp,contexttokens,generatedtokens", ' "Time Stamp" ; Context Tokens ; GENERATED_TOKENS', "A\t"]
)
def test_headers_are_known_whatever_their_case_and_spaces(tmp_path: Path, header: str) -> None:
    separator = ";" if ";" in header else ","
    if header == "A\t":
        header, separator = "TIMESTAMP\tContextTokens\tGeneratedTokens", "\t"
    rows = ["2024-05-12 00:00:00", "100.0", " 7 "]
    workload = read(tmp_path, f"{header}\n{separator.join(rows)}\n").workload
    assert (workload.isl_tokens.tolist(), workload.osl_tokens.tolist()) == ([100], [7])


def test_other_columns_headers_between_and_order_are_message(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens,Region\n2024-05-12 00:00:09,1,2,eu\n"
        "TIMESTAMP,ContextTokens,GeneratedTokens,Region\n2024-05-12 00:00:03,3,4,eu\n"
    )
    reading = read(tmp_path, text)
    assert reading.workload.isl_tokens.tolist() == [3, 1]
    assert "columns not used: Region" in reading.notes
    assert "1 more header lines between the rows: skipped" in reading.notes
    assert "1 rows came earlier than the row before: sorted by time" in reading.notes


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00,1,2,3\n"
    assert "column ContextTokens occurs 2 times" in refused(tmp_path, text)


def test_requests_without_lengths_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [f"2024-05-12 00:00:00,{isl},{osl}" for isl, osl in ((5, 0), (0, 5), ("", 3), (4, "NaN"), (6, 7))]
    reading = read(tmp_path, HEADER + "\n".join(rows))
    assert reading.workload.isl_tokens.tolist() == [6] and reading.rows == 5
    message = "left out   of 5 requests 1 without output tokens, 1 without prompt tokens, 2 without a token count"
    assert message in summary.lines(reading)
    none = refused(tmp_path, HEADER + rows[0])
    assert none.endswith("holds no request that can be served (1 without output tokens)")


def test_burstgpt_counts_failures_and_names_models_and_sessions(tmp_path: Path) -> None:
    text = burstgpt_3(SOME) + "200.0,3,0.1,ChatGPT,50,0,50,API log\n201,,0.1,ChatGPT,50,7,99,API log\n"
    reading = read(tmp_path, text)
    assert reading.dropped == {"without output tokens": 1}
    assert set(reading.workload.tenants) == {"GPT-4", "ChatGPT"}
    assert any("sessions (Session ID)" in note for note in reading.notes)
    assert any(note.startswith("1 rows whose Total tokens is not the sum") for note in reading.notes)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).endswith("not a trace I know: the file is empty")


def test_a_header_alone_holds_no_request(tmp_path: Path) -> None:
    assert refused(tmp_path, HEADER).endswith("holds no request")
    assert refused(tmp_path, "arrival_s,client_id,input_tokens,output_tokens,reason_tokens,answer_tokens\n").endswith(
        "holds no request"
    )


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"PK\x03\x04....", "is a zip archive: unpack it first"),
        (b"PAR1....", "is a Parquet file"),
        (b"\x28\xb5\x2f\xfd....", "is packed with zstd"),
        (b"\x1f\x8b....", "cannot read the trace"),
        (b"\xff\xff\xff", "cannot read the trace"),
    ],
)
def test_what_cannot_be_unpacked_is_named(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(head)
    with pytest.raises(ConfigError, match=said):
        load(path)
    with pytest.raises(ConfigError, match="folder without ServeGen"):
        load(tmp_path)


# --- units


def test_seconds_read_as_milliseconds_are_asked_about(tmp_path: Path) -> None:
    rows = [{"timestamp": at, "input_length": 9, "output_length": 2} for at in range(200)]
    message = refused(tmp_path, lines(rows))
    assert "200 requests in 0 s: are these seconds? use --unit s" in message
    assert read(tmp_path, lines(rows), TraceOptions(unit="s")).workload.duration_s == 199
    assert read(tmp_path, lines(rows), TraceOptions(unit="ms")).workload.duration_s == pytest.approx(0.199)
    hour = [{"timestamp": at * 3.6, "input_length": 9, "output_length": 2} for at in range(1000)]
    assert "1,000 requests in 4 s: are these seconds?" in refused(tmp_path, lines(hour))


def test_dates_as_numbers_of_another_unit_are_asked_about(tmp_path: Path) -> None:
    rows = [{"timestamp": 1_700_000_000 + at, "input_length": 9, "output_length": 2} for at in range(5)]
    assert "dates if they are seconds: use --unit s" in refused(tmp_path, lines(rows))
    reading = read(tmp_path, lines(rows), TraceOptions(unit="s"))
    assert reading.workload.arrival_s.tolist() == [0, 1, 2, 3, 4]
    assert "2023-11-14 22:13:20" in summary.lines(reading)[0]


def test_milliseconds_read_as_seconds_are_asked_about(tmp_path: Path) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text += "".join(f"{at * 2000},GPT-4,5,5,10,API log\n" for at in range(50))
    assert "are these milliseconds? use --unit ms" in refused(tmp_path, text)


def test_a_late_start_counts_from_the_first_request_and_says_so(tmp_path: Path) -> None:
    rows = [{"timestamp": 90_000_000 + at * 1000, "input_length": 9, "output_length": 2} for at in range(3)]
    reading = read(tmp_path, lines(rows))
    assert reading.workload.arrival_s.tolist() == [0, 1, 2]
    assert reading.notes == ("times count from the first request, at 90,000.000 s of the file's own time",)
    assert "times are milliseconds: 90,000 to 90,002 s" in summary.lines(reading)[0]


def test_dates_may_stand_in_json(tmp_path: Path) -> None:
    rows = [{"timestamp": f"2024-05-12T00:00:0{at}Z", "input_length": 9, "output_length": 2} for at in range(3)]
    assert read(tmp_path, lines(rows)).unit == "date"


# --- prompts


@pytest.mark.parametrize(
    "ids",
    [
        (2**64 - 1, 2**63, 5),
        (-(2**63), 0, 2**70),
        ("ffffffffffffffff", "0x1f", "a"),
        (18446744073709551615, "18446744073709551615", 1),
        (1.0, 2.0, 3.0),
    ],
)
def test_hash_ids_of_any_size_and_kind(tmp_path: Path, ids: tuple[object, ...]) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1536, "output_length": 5, "hash_ids": list(ids)},
        {"timestamp": 1, "input_length": 1100, "output_length": 5, "hash_ids": [ids[0], ids[1], "other"]},
    ]
    workload = read(tmp_path, lines(rows)).workload
    assert len(set(workload.units_of(0))) == 3
    assert workload.units_of(1) == workload.units_of(0)[:2]


def test_an_array_of_objects_is_read_as_lines_are(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in mooncake(SOME).splitlines()]
    found = read(tmp_path, json.dumps(rows, indent=2))
    assert found.format == "mooncake"
    assert found.workload.arrival_s.tolist() == [at / 1000 for at, *_ in SOME]


def test_block_size_is_found_by_the_number_of_ids(tmp_path: Path) -> None:
    rows = [
        {"timestamp": at, "input_length": 16 * at + 5, "output_length": 5, "hash_ids": list(range(at + 1))}
        for at in range(9)
    ]
    reading = read(tmp_path, lines(rows))
    assert reading.workload.unit_tokens == 16
    assert "hash_ids stand for 16 tokens each, by their number" in reading.notes
    odd = [{"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [1, 2, 3, 4, 5]}]
    assert not read(tmp_path, lines(odd)).workload.unit_tokens
    assert read(tmp_path, lines(odd), TraceOptions(block_tokens=2)).workload.unit_tokens == 2
    assert fitting_block([100], [3]) == 32


def test_sharing_is_that_of_a_cache_without_end(tmp_path: Path) -> None:
    reading = read(tmp_path, mooncake([(0, 1024, 5), (100, 1024, 5), (200, 512, 5), (90_000, 600, 5)]))
    assert summary.shared_share(reading.workload) == pytest.approx((1024 + 512 + 512) / (1024 + 1024 + 512 + 600))
    assert any(line.startswith("prefixes   65% of prompt tokens") for line in summary.lines(reading))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"hash_ids": 5}, "line 1: hash_ids: expected a list, got 5"),
        ({"hash_ids": [1.5]}, "line 1: hash_ids: expected numbers or texts, got 1.5"),
        ({"timestamp": True}, "line 1: timestamp: True is no number"),
        ({"timestamp": None}, "line 1: output_length"),
        ({"input_length": [3]}, "line 1: input_length: expected a number, got [3]"),
    ],
)
def test_a_wrong_key_of_mooncake_is_named(tmp_path: Path, row: dict[str, object], said: str) -> None:
    whole: dict[str, object] = {"timestamp": 0, "input_length": 9, "output_length": 2, "hash_ids": []} | row
    if row == {"timestamp": None}:
        del whole["output_length"]
        said += " is missing"
    assert said in refused(tmp_path, json.dumps(whole) + "\n")


def test_keys_that_are_not_used_are_named(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": 9, "output_length": 2, "priority": 3, "a\nb": 1}]
    assert read(tmp_path, lines(rows)).notes == (r"keys not used: priority, a\nb",)


def test_lines_of_another_kind_are_refused(tmp_path: Path) -> None:
    text = mooncake(SOME) + '{"arrival_s": 1}\n'
    assert f"line {len(SOME) + 1}: input_length is missing" in refused(tmp_path, text)
    assert f"line {len(SOME) + 1}: not JSON" in refused(tmp_path, mooncake(SOME) + "timestamp,input_length\n")
    assert f"line {len(SOME) + 1}: expected an object" in refused(tmp_path, mooncake(SOME) + "[1]\n")


# --- sessions


def test_later_turns_without_times_follow_the_turn_before(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "timestamp": 0, "input_length": 100, "output_length": 5},
        {"session_id": "b", "timestamp": 500, "input_length": 100, "output_length": 5},
        {"session_id": "a", "delay": 2000, "input_length": 200, "output_length": 5},
        {"session_id": "a", "input_length": 300, "output_length": 5},
        {"session_id": "b", "timestamp": 900, "input_length": 101, "output_length": 5},
    ]
    reading = read(tmp_path, lines(rows))
    workload = reading.workload
    # At the earliest: as if answers took no time.
    assert workload.arrival_s.tolist() == [0.0, 0.5, 0.9, 2.0, 2.0]
    assert workload.isl_tokens.tolist() == [100, 100, 101, 200, 300]
    assert workload.turn_before.tolist() == [-1, -1, -1, 0, 3]
    assert workload.think_s[3:].tolist() == [2.0, 0.0]
    assert "2 turns come after the answer before them" in " ".join(summary.lines(reading))
    in_seconds = read(tmp_path, lines(rows[:3]), TraceOptions(unit="s")).workload
    assert in_seconds.think_s[2] == 2000


def test_sessions_without_any_time_start_at_once_or_at_a_rate(tmp_path: Path) -> None:
    rows = [
        {"session_id": name, "input_length": 10 * turn + 10, "output_length": 5, **({"delay": 1000} if turn else {})}
        for turn in range(3)
        for name in ("a", "b")
    ]
    reading = read(tmp_path, lines(rows))
    assert not reading.timed and reading.notes == ("the file holds no times; 2 sessions start at once",)
    drawn = reading.at_rate(0.01, np.random.default_rng(0))
    assert drawn.timed and len(drawn.workload) == 6
    assert drawn.notes == (
        "the file holds no times: arrivals are drawn at 0.01 requests a second in sessions (Poisson)",
    )
    for session in (0, 1):
        turns = np.flatnonzero(drawn.workload.session == session)
        assert np.diff(drawn.workload.arrival_s[turns]).tolist() == pytest.approx([1.0, 1.0])
        assert drawn.workload.isl_tokens[turns].tolist() == [10, 20, 30]


def test_a_rate_counts_requests_and_not_sessions(tmp_path: Path) -> None:
    rows = [{"session_id": at // 4, "input_length": 10, "output_length": 5} for at in range(4000)]
    drawn = read(tmp_path, lines(rows)).at_rate(2.0, np.random.default_rng(0)).workload
    assert len(drawn) / drawn.duration_s == pytest.approx(2.0, rel=0.1)


def test_a_turn_whose_time_nothing_says_is_refused(tmp_path: Path) -> None:
    first = {"session_id": "a", "timestamp": 0, "input_length": 9, "output_length": 2}
    other = {"session_id": "b", "input_length": 9, "output_length": 2}
    assert "line 2: timestamp is missing, with its session's first turn" in refused(tmp_path, lines([first, other]))
    del other["session_id"]
    assert "line 2: timestamp is missing, with no session_id" in refused(tmp_path, lines([first, other]))
    assert "line 2: has a timestamp where sessions before it" in refused(tmp_path, lines([other, first]))
    late = first | {"delay": -5}
    assert "line 1: delay: expected at least 0, got -5" in refused(tmp_path, lines([late]))


# --- text


def test_text_needs_a_way_to_count(tmp_path: Path) -> None:
    chats = json.dumps([{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}])
    message = refused(tmp_path, chats)
    assert "--tokenizer" in message and "--chars-per-token 4" in message
    assert "cannot load the tokenizer" in refused(tmp_path, chats, TraceOptions(tokenizer=tmp_path / "none"))


def test_each_answer_of_a_chat_is_a_request(tmp_path: Path) -> None:
    turns = [("system", "s" * 100), ("human", "a" * 30), ("gpt", "b" * 20), ("human", "c" * 10), ("gpt", "d" * 5)]
    chats = [
        {"conversations": [{"from": role, "value": text} for role, text in turns]},
        {"conversations": [{"from": "gpt", "value": "no prompt"}, {"from": "human", "value": "x"}]},
        {"conversations": [{"from": "user", "value": "y" * 9}, {"from": "assistant", "value": "z"}]},
    ]
    reading = read(tmp_path, json.dumps(chats), TraceOptions(chars_per_token=1))
    workload = reading.workload
    assert list(zip(workload.isl_tokens, workload.osl_tokens, strict=True)) == [(130, 20), (160, 5), (9, 1)]
    assert workload.turn_before.tolist() == [-1, 0, -1]
    assert workload.units_of(1)[: len(workload.units_of(0))] == workload.units_of(0)
    assert not set(workload.units_of(2)) & set(workload.units_of(1))
    assert reading.dropped == {"without prompt tokens": 1}
    assert "lengths are estimates: 1 characters to a token" in reading.notes


def test_messages_of_chat_apis_line_by_line_and_by_a_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    parts = [{"type": "text", "text": "one two"}, {"type": "image_url", "image_url": {}}]
    rows = [
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "three four five"}]},
        {"messages": [{"role": "user", "content": "\ud800 six"}, {"role": "assistant", "content": None}]},
    ]
    for place in (tmp_path / "model", tmp_path / "model" / "tokenizer.json"):
        reading = read(tmp_path, lines(rows), TraceOptions(tokenizer=place))
        assert (reading.workload.isl_tokens.tolist(), reading.workload.osl_tokens.tolist()) == ([2], [3])
        assert any(note.startswith("2 messages or parts without text") for note in reading.notes)


def test_text_input_of_aiperf_is_counted(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "text_input": "abcdefgh", "output_length": 2}]
    assert read(tmp_path, lines(rows), TraceOptions(chars_per_token=4)).workload.isl_tokens.tolist() == [2]
    assert "holds text" in refused(tmp_path, lines(rows))
    chat = {"timestamp": 0, "messages": [{"role": "user", "content": "abcd" * 5}], "output_length": 2}
    reading = read(tmp_path, lines([chat]), TraceOptions(chars_per_token=4))
    assert reading.format == "mooncake" and reading.workload.isl_tokens.tolist() == [5]
    assert "messages: expected a list" in refused(
        tmp_path, lines([chat | {"messages": 3}]), TraceOptions(chars_per_token=4)
    )


# --- results


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"mean_ttft_ms": 1, "completed": 3}, "vllm bench serve's totals: run it with --save-detailed"),
        ({"time_to_first_token": {}, "input_config": {}}, "aiperf's totals: pass profile_export.jsonl"),
        ({"successes": {}, "failures": {}}, "pass per_request_lifecycle_metrics.json"),
        ({"experiments": []}, "genai-perf's texts and no token counts"),
        ({"ttft_s": {}, "completed": 3}, "baton bench's totals: run it with --out"),
        ({"benchmarks": [{"requests": None}]}, "benchmark 1 holds no list requests.successful"),
        ({"benchmarks": []}, "holds no request"),
        ({"records": []}, "holds no request"),
        ({"input_lens": [1], "output_lens": [1, 2]}, "differ in length"),
        ({"input_lens": 3, "output_lens": [1, 2]}, "holds totals only"),
        ({"colour": "red", "size": 3}, "not a trace I know (keys colour, size); expected one of azure"),
    ],
)
def test_totals_and_strangers_are_message_what_to_pass(tmp_path: Path, text: dict[str, object], said: str) -> None:
    assert said in refused(tmp_path, json.dumps(text))


def test_failures_and_reasoning_of_results(tmp_path: Path) -> None:
    reading = read(tmp_path, aiperf(SOME))
    assert reading.dropped == {"failed": 1}
    assert reading.workload.reasoning_tokens.tolist() == [osl // 2 for *_, osl in SOME]
    assert read(tmp_path, guidellm(SOME)).dropped == {"errored": 1}


def test_runs_appended_by_vllm_follow_each_other(tmp_path: Path) -> None:
    runs = [{"input_lens": [5, 6], "output_lens": [1, 2], "start_times": [90.0, 91.0], "errors": ["", ""]}] * 2
    reading = read(tmp_path, lines(runs))
    assert reading.workload.arrival_s.tolist() == [0.0, 1.0, 1.0, 2.0]
    assert "2 runs, set one behind the other" in reading.notes


def test_old_guidellm_and_vllm_without_times(tmp_path: Path) -> None:
    request = {"start_time": 1_700_000_000.5, "prompt_tokens": 3, "output_tokens": 4}
    assert read(tmp_path, json.dumps({"benchmarks": [{"requests": {"successful": [request]}}]})).timed
    untimed = read(tmp_path, json.dumps({"input_lens": [5], "output_lens": [6]}))
    assert not untimed.timed and untimed.notes == ("the file holds no times",)


# --- ServeGen


def test_servegens_own_folder(tmp_path: Path) -> None:
    (tmp_path / "chunk-3-trace.csv").write_text("0,0.5,1.2,Gamma,0.8,2.5\n600,0,0,,0,0\n1200,1.0,0.9,Weibull,1.1,1\n")
    density = {"input_tokens": "{100: 0.5, 200: 0.5}", "output_tokens": "{50: 1.0}", "reason_ratio": "{0.5: 1.0}"}
    (tmp_path / "chunk-3-dataset.json").write_text(json.dumps({"0": density, "21600": {"input_tokens": "{}"}}))
    reading = load(tmp_path)
    workload = reading.workload
    assert reading.format == "servegen" and len(workload) == pytest.approx(900, abs=2)
    assert set(workload.isl_tokens.tolist()) <= set(range(100, 201))
    assert (workload.isl_tokens <= 101).mean() == pytest.approx(0.5, abs=0.06)
    assert set(workload.reasoning_tokens.tolist()) == {25} and workload.tenants == ("3",)
    del density["reason_ratio"]
    (tmp_path / "chunk-3-dataset.json").write_text(json.dumps({"0": density}))
    assert not load(tmp_path).workload.reasoning_tokens.any()
    (tmp_path / "chunk-3-dataset.json").write_text(json.dumps({"0": {"input_tokens": "__import__('os')"}}))
    with pytest.raises(ConfigError, match="segment '0': ValueError, no density"):
        load(tmp_path)
