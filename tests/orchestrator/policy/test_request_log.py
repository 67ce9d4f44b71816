from __future__ import annotations

from orchestrator.policy.request_log import MAX_CLASSES, OTHERS, RequestLog
from orchestrator.policy.scaling_policy import Arrival, FinishedRequest, InFlight


def flight(number: int, made: int = 0) -> InFlight:
    return InFlight(number, "a/high", 0, 10, made, "decode-0", "decoding")


def ended(number: int, name: str = "a/high") -> FinishedRequest:
    return FinishedRequest(number, name, 10, 0, 5, 5, 0.1, 1.0)


def test_requests_of_two_gateways_do_not_mix() -> None:
    requests = RequestLog(silence_s=10)
    requests.report("one", 1, 0.0, [], [flight(7, 3)], [])
    requests.report("two", 1, 0.0, [], [flight(7, 9)], [])
    numbers = {each.generated_tokens: each.request for each in requests.in_flight(0.1)}
    assert len(set(numbers.values())) == 2
    # A request keeps its number from report to report, and its end is reported under it.
    requests.report("two", 2, 1.0, [], [flight(7, 12)], [])
    assert {each.request for each in requests.in_flight(1.1)} == set(numbers.values())
    requests.report("two", 3, 2.0, [], [], [ended(7)])
    (done,) = requests.take_finished()
    assert done.request == numbers[9]
    assert not requests.take_finished()


def test_a_report_that_comes_twice_counts_once() -> None:
    requests = RequestLog(silence_s=10)
    for _ in range(2):
        requests.report("one", 4, 0.0, [Arrival(0.0, "a", 5)], [], [ended(1)])
    assert (
        requests.arrived_requests,
        requests.arrived_tokens,
        len(requests.take_arrived()),
        len(requests.take_finished()),
    ) == (
        1,
        5,
        1,
        1,
    )


def test_a_silent_gateways_requests_are_gone_and_a_new_one_begins_afresh() -> None:
    requests = RequestLog(silence_s=10)
    requests.report("one", 1, 0.0, [], [flight(1)], [])
    assert len(list(requests.in_flight(10.0))) == 1
    assert not list(requests.in_flight(10.1))
    assert requests.report("one", 1, 11.0, [], [flight(1)], [])


def test_callers_cannot_make_classes_without_end() -> None:
    requests = RequestLog(silence_s=10)
    arrivals = [Arrival(float(index), f"tenant-{index}", 1) for index in range(3 * MAX_CLASSES)]
    requests.report("one", 1, 0.0, arrivals, [], [])
    names = {each.tenant for each in requests.take_arrived()}
    assert len(names) == MAX_CLASSES + 1
    assert OTHERS in names
