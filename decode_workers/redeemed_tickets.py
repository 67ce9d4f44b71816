"""Which handoff tickets a worker has used up."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from baton.internal.v1 import worker_pb2
from cluster.errors import TicketRefused

REMEMBERED_TICKETS = 65536


class RedeemedTickets:
    """Owns the ids of the tickets redeemed on this worker, the latest 65536.

    A gateway's `kv_transfer.ticket.TicketGuard` checks its tickets too; this stands against a replay from another one.
    """

    def __init__(self) -> None:
        self._redeemed: OrderedDict[str, None] = OrderedDict()

    def redeem(self, ticket: worker_pb2.Ticket) -> dict[str, Any]:
        """Use a ticket up and return its transfer parameters.

        Raises:
            TicketRefused: it was used before, or is past its deadline.
        """
        if ticket.expires_in_s <= 0:
            raise TicketRefused("the ticket is past its deadline", ticket_id=ticket.ticket_id)
        if ticket.ticket_id in self._redeemed:
            raise TicketRefused("the ticket was used before", ticket_id=ticket.ticket_id)
        self._redeemed[ticket.ticket_id] = None
        while len(self._redeemed) > REMEMBERED_TICKETS:
            self._redeemed.popitem(last=False)
        params: dict[str, Any] = json.loads(ticket.params_json)
        return params
