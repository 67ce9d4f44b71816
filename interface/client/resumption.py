"""What a client holds of a running generation, so that another gateway can go on with it. Pure.

::

    lost gateway ──> request() at the next address: the same request, with every token received
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from interface.client.completion import Event, event_of
from interface.status import ERROR_KIND_KEY

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
ROUNDS = 4
"""Times that all addresses are tried in vain before the client gives up."""

_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


def is_lost(code: grpc.StatusCode, metadata: Iterable[tuple[str, Any]] | None) -> bool:
    """Whether a call ended because its gateway went, and not because the gateway said so: gateways name the error."""
    return code in _LOST and not any(key == ERROR_KIND_KEY for key, _ in metadata or ())


def addresses_of(address: str | Sequence[str]) -> list[str]:
    """Addresses given one by one, or in one string with commas.

    Raises:
        InvalidRequest: there is none.

    Example:
        >>> addresses_of("a:1, b:2")
        ['a:1', 'b:2']
    """
    found = [item.strip() for item in (address.split(",") if isinstance(address, str) else address)]
    found = [item for item in found if item]
    if not found:
        raise InvalidRequest("give the address of a gateway, host:port")
    return found


class Patience:
    """How long to try. Progress makes it new."""

    def __init__(self, addresses: int) -> None:
        self._addresses = addresses
        self._failures = 0

    def progress(self) -> None:
        """Something came."""
        self._failures = 0

    def pause_s(self) -> float | None:
        """A gateway was lost: seconds before the next address is tried, or None to give up.

        Example:
            >>> patience = Patience(2)
            >>> [patience.pause_s() for _ in range(9)]
            [0.0, 0.1, 0.0, 0.2, 0.0, 0.4, 0.0, 0.8, None]
        """
        self._failures += 1
        rounds, rest = divmod(self._failures, self._addresses)
        if self._failures > ROUNDS * self._addresses:
            return None
        return 0.0 if rest else min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (rounds - 1))


class Resumption:
    """One generation as its caller sees it, over any number of gateways."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        self._resume = pb.Resume()
        self._seen: set[tuple[str, int]] = set()
        self._started = False
        self.done = False

    def request(self) -> pb.GenerateRequest:
        """What to ask the next gateway."""
        if not self._started:
            return self._request
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        request.resume.CopyFrom(self._resume)
        return request

    @property
    def can_go_on(self) -> bool:
        """Whether another gateway may be asked; with several choices, only before the first token."""
        return (self._request.sampling.n or 1) == 1 or not self._started

    def take(self, response: pb.GenerateResponse) -> Event | None:
        """Take a response; returns the event for the caller, None for what it had before."""
        event = event_of(response)
        match event:
            case pb.Admitted() | pb.FirstToken():
                if isinstance(event, pb.Admitted):
                    self._resume.prompt_fingerprint = event.prompt_fingerprint
                key = (type(event).__name__, event.choice)
                if key in self._seen:
                    return None
                self._seen.add(key)
            case pb.PromptLogprobs():
                key = (type(event).__name__, event.first_position)
                if key in self._seen:
                    return None
                self._seen.add(key)
            case pb.Delta():
                self._started = True
                self._resume.token_ids.extend(event.token_ids)
                if event.finish_reason:
                    self._resume.finish_reason = event.finish_reason
                    self._resume.stop_matched = event.stop_matched
            case pb.Finished():
                self.done = True
        return event
