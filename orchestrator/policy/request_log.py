"""What gateways have said of their requests, put together for the autoscaler. Pure.

Each gateway reports all of its requests in flight at once, and those that came and ended since its last report. A
report may come twice (its answer was lost) and a gateway may die: neither may count a request twice or keep it for
ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.policy.scaling_policy import Arrival, FinishedRequest, InFlight

MAX_CLASSES = 64
"""Classes whose lengths are learned apart. Callers choose their tenant's name where no key is asked for."""
OTHERS = "others"


@dataclass(slots=True)
class _Gateway:
    sequence: int = -1
    heard_s: float = 0.0
    flights: tuple[InFlight, ...] = ()
    numbers: dict[int, int] = field(default_factory=dict)


class RequestLog:
    """Requests of all gateways.

    Args:
        silence_s: A gateway that has reported nothing for so long is gone, and its requests with it.

    Example:
        >>> requests = RequestLog(silence_s=10.0)
        >>> flight = InFlight(7, "chat", 0, 100, 5, "decode-0", "decoding")
        >>> requests.report("a", 1, 0.0, [Arrival(0.0, "chat", 100)], [flight], [])
        True
        >>> requests.report("a", 1, 0.5, [Arrival(0.0, "chat", 100)], [flight], [])
        False
        >>> len(list(requests.in_flight(1.0))), len(requests.take_arrived()), len(list(requests.in_flight(11.0)))
        (1, 1, 0)
    """

    def __init__(self, *, silence_s: float) -> None:
        self._silence_s = silence_s
        self._gateways: dict[str, _Gateway] = {}
        self._numbers = itertools.count()
        self._classes: set[str] = set()
        self._arrived: list[Arrival] = []
        self._finished: list[FinishedRequest] = []
        self._taken_s = -1e18
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self.finished_requests = 0

    def report(
        self,
        gateway: str,
        sequence: int,
        now_s: float,
        arrived: Sequence[Arrival],
        in_flight: Sequence[InFlight],
        finished: Sequence[FinishedRequest],
    ) -> bool:
        """Take a report; whether it was new. Request numbers are the gateway's own."""
        known = self._gateways.setdefault(gateway, _Gateway())
        known.heard_s = now_s
        if sequence <= known.sequence:
            return False
        known.sequence = sequence
        for came in arrived:
            self._arrived.append(replace(came, tenant=self._class_of(came.tenant)))
            self.arrived_requests += 1
            self.arrived_tokens += came.isl_tokens
        for end in finished:
            self.finished_requests += 1
            number = known.numbers.pop(end.request, None)
            self._finished.append(
                replace(
                    end,
                    request=next(self._numbers) if number is None else number,
                    tenant=self._class_of(end.tenant),
                )
            )
        numbers = {
            each.request: known.numbers[each.request] if each.request in known.numbers else next(self._numbers)
            for each in in_flight
        }
        known.numbers = numbers
        known.flights = tuple(
            replace(each, request=numbers[each.request], tenant=self._class_of(each.tenant)) for each in in_flight
        )
        return True

    def in_flight(self, now_s: float) -> Iterator[InFlight]:
        """Every request that has not ended, of gateways that live."""
        for name, gateway in list(self._gateways.items()):
            if now_s - gateway.heard_s > self._silence_s:
                del self._gateways[name]
            else:
                yield from gateway.flights

    def take_arrived(self) -> list[Arrival]:
        """Requests that came since the last call, in order; one reported late counts as coming when it was reported."""
        came, self._arrived = sorted(self._arrived, key=lambda each: each.time_s), []
        came = [replace(each, time_s=max(each.time_s, self._taken_s)) for each in came]
        self._taken_s = came[-1].time_s if came else self._taken_s
        return came

    def take_finished(self) -> list[FinishedRequest]:
        """Requests that ended since the last call."""
        done, self._finished = self._finished, []
        return done

    def _class_of(self, name: str) -> str:
        if name not in self._classes:
            if len(self._classes) >= MAX_CLASSES:
                return OTHERS
            self._classes.add(name)
        return name
