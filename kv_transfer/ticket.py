"""The handoff ticket: the right to read one request's KV blocks from one engine, once, before a deadline.

vLLM's transfer parameters are a bare dict. Replayed, they can return another prompt's text with a normal status
(vllm#52234); with a key missing they kill the decode engine or park the request for ever. The ticket closes both:
what an engine returned is checked before it becomes a ticket, and a ticket is redeemed once, only against the
engine incarnation that wrote it, only before its deadline. Pure: time is an argument.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cluster.errors import TicketRefused

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "do_remote_prefill": bool,
    "remote_block_ids": (list, tuple),
    "remote_engine_id": str,
    "remote_request_id": str,
    "remote_host": str,
    "remote_port": int,
    "tp_size": int,
    "remote_num_tokens": int,
}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "do_remote_decode": bool,
    "dcp_size": int,
    "pp_size": int,
    "remote_blocks_expiry_time": (float, int, type(None)),
    "transfer_mode": str,
    "remote_prefill_cached_tokens": (int, type(None)),
}


@dataclass(frozen=True, slots=True)
class HandoffTicket:
    """KV of ``num_tokens`` tokens in the engine ``incarnation`` of worker ``source_id``, readable until ``deadline_s``.

    ``params_json`` are the checked transfer parameters; they go verbatim to the decode engine.
    """

    ticket_id: str
    source_id: str
    incarnation: str
    num_tokens: int
    num_blocks: int
    deadline_s: float
    params_json: str

    @property
    def params(self) -> dict[str, Any]:
        """The transfer parameters."""
        result: dict[str, Any] = json.loads(self.params_json)
        return result


def issue(
    params: Any,
    *,
    source_id: str,
    incarnation: str,
    block_size_tokens: int,
    deadline_s: float,
) -> HandoffTicket:
    """Check what an engine returned and make a ticket of it.

    Raises:
        TicketRefused: parameters are missing, malformed, of another engine, or name fewer blocks than tokens need.
    """
    if not params:
        raise TicketRefused("prefill returned no transfer parameters; its blocks were not kept", worker_id=source_id)
    if not isinstance(params, dict):
        raise TicketRefused(f"transfer parameters have type {type(params).__name__}", worker_id=source_id)
    for key, kind in _REQUIRED.items():
        if key not in params:
            raise TicketRefused(f"prefill's transfer parameters lack {key}", worker_id=source_id)
        if not isinstance(params[key], kind) or (kind is int and isinstance(params[key], bool)):
            raise TicketRefused(f"{key} has type {type(params[key]).__name__}", worker_id=source_id)
    for key, value in params.items():
        if key not in _REQUIRED and (key not in _OPTIONAL or not isinstance(value, _OPTIONAL[key])):
            raise TicketRefused(f"unknown or malformed transfer parameter {key}", worker_id=source_id)
    if params["remote_engine_id"] != incarnation:
        raise TicketRefused("the parameters are of another engine incarnation", worker_id=source_id)
    if not params["do_remote_prefill"]:
        raise TicketRefused("the parameters do not offer a remote prefill", worker_id=source_id)
    if not all(isinstance(group, list | tuple) for group in params["remote_block_ids"]):
        raise TicketRefused("remote_block_ids must be a list of lists", worker_id=source_id)
    groups = [list(group) for group in params["remote_block_ids"]]
    blocks = max((len(group) for group in groups), default=0)
    num_tokens = params["remote_num_tokens"]
    if num_tokens < 1 or blocks < -(-num_tokens // block_size_tokens):
        raise TicketRefused(f"{blocks} blocks cannot hold {num_tokens} tokens", worker_id=source_id)
    if any(type(block) is not int or block < 0 for group in groups for block in group):
        raise TicketRefused("block ids must be integers >= 0", worker_id=source_id)
    if not 0 < params["remote_port"] < 65536 or params["tp_size"] < 1:
        raise TicketRefused("port or tensor-parallel size out of range", worker_id=source_id)
    name = params["remote_request_id"]
    if not (name and params["remote_host"] and f"{name}{params['remote_host']}".isprintable()):
        raise TicketRefused("request id or host is empty or not printable", worker_id=source_id)
    clean = dict(params, remote_block_ids=groups)
    return HandoffTicket(
        ticket_id=f"{incarnation}/{name}",
        source_id=source_id,
        incarnation=incarnation,
        num_tokens=num_tokens,
        num_blocks=blocks,
        deadline_s=deadline_s,
        params_json=json.dumps(clean),
    )


def export_params(imported: dict[str, Any] | None = None) -> dict[str, Any]:
    """Transfer parameters that have an engine keep a leg's KV and return those that `issue` makes a ticket of.

    ``imported`` are those of a ticket, for a leg that also reads.
    """
    return {"do_remote_prefill": False, **(imported or {}), "do_remote_decode": True}


class TicketGuard:
    """Which tickets were redeemed and which engine incarnations are alive: the gateway's check before decode."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._alive: dict[str, str] = {}

    def worker_up(self, worker_id: str, incarnation: str) -> None:
        """A worker serves under this incarnation; tickets of its earlier ones are refused from here on."""
        self._alive[worker_id] = incarnation

    def worker_down(self, worker_id: str) -> None:
        """A worker is gone, and the blocks with it."""
        self._alive.pop(worker_id, None)

    def redeem(self, ticket: HandoffTicket, *, now_s: float) -> dict[str, Any]:
        """Use the ticket up and return its parameters.

        Raises:
            TicketRefused: used before, past its deadline, or its engine is gone or was restarted.
        """
        self._forget(now_s)
        if ticket.ticket_id in self._used:
            raise TicketRefused("the ticket was used before", ticket_id=ticket.ticket_id)
        if not now_s < ticket.deadline_s:
            raise TicketRefused("the ticket is past its deadline", ticket_id=ticket.ticket_id)
        if self._alive.get(ticket.source_id) != ticket.incarnation:
            raise TicketRefused("the engine that wrote the ticket is gone", ticket_id=ticket.ticket_id)
        self._used[ticket.ticket_id] = ticket.deadline_s
        return ticket.params

    def _forget(self, now_s: float) -> None:
        """Past its deadline a ticket is refused anyway, so it need not remember it."""
        if len(self._used) > 4096:
            self._used = {key: deadline for key, deadline in self._used.items() if deadline > now_s}
