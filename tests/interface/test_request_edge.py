"""What both protocols do to a request at the edge: its deadline, how a failure is logged, a reader that stops."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2
from cluster.errors import DeadlineExceeded, InvalidRequest, RequestAborted, RequestRejected, ServingError, WorkerDied
from interface.deadline import fold_deadline
from interface.failure import report
from interface.slow_reader import reading_within

seconds = st.floats(min_value=1e-3, max_value=1e6)


def folded(own_s: float | None, remaining_s: float | None) -> float | None:
    request = inference_pb2.GenerateRequest()
    if own_s is not None:
        request.deadline_s = own_s
    fold_deadline(request, remaining_s)
    return request.deadline_s if request.HasField("deadline_s") else None


# --- deadlines ------------------------------------------------------------------------------------------------------


@given(st.one_of(st.none(), seconds), st.one_of(st.none(), seconds))
def test_the_earlier_deadline_counts(own_s: float | None, remaining_s: float | None) -> None:
    expected = min((each for each in (own_s, remaining_s) if each is not None), default=None)
    assert folded(own_s, remaining_s) == (None if expected is None else pytest.approx(expected))


@given(seconds)
def test_folding_again_changes_nothing(own_s: float) -> None:
    request = inference_pb2.GenerateRequest(deadline_s=own_s)
    fold_deadline(request, None)
    first = request.deadline_s
    fold_deadline(request, first)
    fold_deadline(request, math.inf)
    assert request.deadline_s == first


@pytest.mark.parametrize(("own_s", "remaining_s"), [(math.inf, None), (math.inf, math.inf), (None, math.inf)])
def test_endless_means_none(own_s: float | None, remaining_s: float | None) -> None:
    assert folded(own_s, remaining_s) is None


@pytest.mark.parametrize(
    ("own_s", "remaining_s"), [(0.0, None), (-1.0, 5.0), (5.0, 0.0), (5.0, -0.1), (-math.inf, None), (math.inf, -1.0)]
)
def test_a_deadline_that_is_past_is_refused_at_once(own_s: float, remaining_s: float | None) -> None:
    with pytest.raises(DeadlineExceeded, match="past when the request arrived"):
        folded(own_s, remaining_s)


def test_a_deadline_that_is_no_number_names_its_field() -> None:
    with pytest.raises(InvalidRequest) as refused:
        folded(math.nan, 5.0)
    assert refused.value.field == "deadline_s"


# --- failures -------------------------------------------------------------------------------------------------------

SECRET = "a word of the prompt"


def logged(caplog: pytest.LogCaptureFixture, error: Exception, request_id: str = "r1") -> tuple[ServingError, str, int]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="baton.api"):
        failure = report(error, request_id)
    (record,) = caplog.records
    return failure, record.getMessage(), record.levelno


def test_a_refusal_is_logged_by_class_and_field_alone(caplog: pytest.LogCaptureFixture) -> None:
    error = InvalidRequest(f"stop: {SECRET}", field="stop")
    failure, text, level = logged(caplog, error)
    assert failure is error
    assert text == "request r1 refused: InvalidRequest field='stop'"
    assert level == logging.INFO
    assert logged(caplog, RequestRejected(SECRET, retry_after_s=1))[1] == "request r1 refused: RequestRejected"


def test_a_failure_of_the_cluster_is_logged_with_its_text(caplog: pytest.LogCaptureFixture) -> None:
    error = WorkerDied("decode-0 is gone")
    failure, text, level = logged(caplog, error)
    assert failure is error
    assert "decode-0 is gone" in text
    assert level == logging.WARNING


def test_of_an_unforeseen_error_the_caller_learns_nothing_and_the_log_no_text(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise KeyError(SECRET)

    try:
        fails()
    except KeyError as error:
        failure, text, level = logged(caplog, error)
        assert failure.__cause__ is error
    assert type(failure) is ServingError
    assert SECRET not in failure.message + text
    assert "KeyError" in text
    assert "in fails" in text
    assert level == logging.ERROR


@given(st.text(max_size=300))
def test_an_id_forges_no_line_of_the_log(request_id: str) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("baton.api")
    logger.addHandler(handler)
    before, logger.level = logger.level, logging.INFO
    try:
        report(RequestAborted("left"), request_id)
    finally:
        logger.removeHandler(handler)
        logger.level = before
    (record,) = records
    text = record.getMessage()
    assert text.isprintable()
    assert len(text) < 200
    if not request_id:
        assert text.startswith("request - ")


# --- slow readers ---------------------------------------------------------------------------------------------------


async def test_a_write_that_is_never_taken_aborts_the_request() -> None:
    with pytest.raises(RequestAborted, match=r"not read for 0\.01 s"):
        async with reading_within(0.01):
            await asyncio.Event().wait()


async def test_a_write_that_is_taken_costs_nothing_and_its_own_error_is_kept() -> None:
    async with reading_within(60):
        await asyncio.sleep(0)
    with pytest.raises(ConnectionResetError):
        async with reading_within(60):
            raise ConnectionResetError
