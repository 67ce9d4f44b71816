"""KV transfers over links that are shared: each worker has one way out and one way in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.simulator.kernel import Kernel


@dataclass(slots=True, eq=False)
class Transfer:
    """One transfer under way. ``work_s`` is what is left of it, in seconds of an idle link."""

    source_id: str
    target_id: str
    work_s: float
    done: Callable[[], None]
    rate: float = 1.0
    since_s: float = 0.0
    version: int = 0


class Links:
    """Fair sharing: with ``m`` transfers out of the source and ``n`` into the target, one runs at ``1 / max(m, n)``.

    No link is ever asked for more than it has; one whose partners are slowed elsewhere is left partly idle, where
    max-min sharing would hand the rest on, so times under contention are upper bounds. The fixed latency of a
    transfer is shared like its bytes.

    Example:
        >>> kernel, ended = Kernel(), []
        >>> links = Links(kernel)
        >>> _ = links.start("p0", "d0", 1.0, lambda: ended.append(kernel.now_s))
        >>> _ = links.start("p0", "d1", 2.0, lambda: ended.append(kernel.now_s))
        >>> kernel.run()
        >>> ended
        [2.0, 3.0]
    """

    def __init__(self, kernel: Kernel) -> None:
        self.moved_s = 0.0
        self._kernel = kernel
        self._out: dict[str, dict[Transfer, None]] = {}
        self._in: dict[str, dict[Transfer, None]] = {}

    def start(self, source_id: str, target_id: str, work_s: float, done: Callable[[], None]) -> Transfer:
        """Begin a transfer that would take ``work_s`` seconds alone; ``done()`` is called at its end."""
        transfer = Transfer(source_id, target_id, work_s, done, since_s=self._kernel.now_s)
        self._out.setdefault(source_id, {})[transfer] = None
        self._in.setdefault(target_id, {})[transfer] = None
        self.moved_s += work_s
        self._share(source_id, target_id)
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Stop a transfer; its ``done`` is never called. Harmless after its end."""
        if self._remove(transfer):
            self._share(transfer.source_id, transfer.target_id)

    def of(self, worker_id: str) -> list[Transfer]:
        """Transfers from or to a worker."""
        return [*self._out.get(worker_id, ()), *self._in.get(worker_id, ())]

    def _remove(self, transfer: Transfer) -> bool:
        transfer.version += 1
        found = transfer in self._out[transfer.source_id]
        self._out[transfer.source_id].pop(transfer, None)
        self._in[transfer.target_id].pop(transfer, None)
        return found

    def _share(self, source_id: str, target_id: str) -> None:
        now_s = self._kernel.now_s
        for transfer in self._out[source_id] | self._in[target_id]:
            users = max(len(self._out[transfer.source_id]), len(self._in[transfer.target_id]))
            transfer.work_s -= (now_s - transfer.since_s) * transfer.rate
            transfer.since_s = now_s
            transfer.rate = 1.0 / users
            transfer.version += 1
            self._kernel.at(now_s + max(0.0, transfer.work_s) * users, self._end, (transfer, transfer.version))

    def _end(self, argument: tuple[Transfer, int]) -> None:
        transfer, version = argument
        if transfer.version != version:
            return
        self._remove(transfer)
        self._share(transfer.source_id, transfer.target_id)
        transfer.done()
