"""What UCX says it uses: parses the log that `UCX_PROTO_INFO=y` and `UCX_LOG_LEVEL=info` write. Pure.

UCX prints one table per endpoint and operation (openucx `proto_debug.c`), here of version 1.23::

    | initiator intra-node cfg#1                              |
    | remote memory read by ucp_get* into host memory from host |
    | Range  | Description | Config     |
    | 0..inf | zero-copy   | cma/memory |

``intra-node`` and ``inter-node`` tables are of the link to the peer; ``self`` is the agent's endpoint to itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.spec.config import Transport

_FAMILIES: tuple[tuple[str, Transport], ...] = (
    ("cuda_ipc", Transport.NVLINK),
    ("rocm_ipc", Transport.NVLINK),
    ("rc", Transport.RDMA),
    ("dc", Transport.RDMA),
    ("ud", Transport.RDMA),
    ("srd", Transport.RDMA),
    ("ib", Transport.RDMA),
    ("gga", Transport.RDMA),
    ("cma", Transport.SHARED_MEMORY),
    ("knem", Transport.SHARED_MEMORY),
    ("xpmem", Transport.SHARED_MEMORY),
    ("posix", Transport.SHARED_MEMORY),
    ("sysv", Transport.SHARED_MEMORY),
    ("self", Transport.SHARED_MEMORY),
    ("tcp", Transport.TCP),
)
"""UCX transport name, or its beginning before ``_`` (``rc_mlx5``), to the spec's word. `ucx_info -d` lists them."""

_LANE = re.compile(r"\b([a-z]+(?:_[a-z0-9]+)*)/([\w.:\-]+)")
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class ReadProtocol:
    """How UCX reads remote memory for message sizes of ``first_bytes`` to ``last_bytes``, both included."""

    first_bytes: float
    last_bytes: float
    description: str
    lanes: tuple[str, ...]

    @property
    def transport(self) -> Transport | None:
        """The spec's word for the lane that carries most bytes; None for a lane this table does not know."""
        return transport_of(self.lanes[0]) if self.lanes else None


def transport_of(lane: str) -> Transport | None:
    """The spec's word for a UCX lane.

    Example:
        >>> transport_of("rc_mlx5/mlx5_0:1"), transport_of("cma/memory"), transport_of("cuda_ipc/cuda")
        (<Transport.RDMA: 'rdma'>, <Transport.SHARED_MEMORY: 'shared_memory'>, <Transport.NVLINK: 'nvlink'>)
    """
    name = lane.split("/")[0]
    return next((to for family, to in _FAMILIES if name == family or name.startswith(f"{family}_")), None)


def read_protocols(log: str) -> list[ReadProtocol]:
    """Every row of the tables for remote memory reads from a peer, in the order of the log.

    Example:
        >>> rows = ["initiator intra-node cfg#1", "remote memory read by ucp_get* into host memory from host",
        ...         "Range | Description | Config", "0..inf | zero-copy | cma/memory"]
        >>> read_protocols("\\n".join(f"[17.2] [vm:1 :0] | {row} |" for row in rows))[0].lanes
        ('cma/memory',)
    """
    found: list[ReadProtocol] = []
    of_peer = is_read = False
    for line in log.splitlines():
        start = line.find("|")
        if start < 0 or not line.rstrip().endswith("|"):
            continue
        cells = [cell.strip() for cell in line[start:].strip().strip("|").split("|")]
        if len(cells) == 1:
            if "cfg#" in cells[0]:
                of_peer, is_read = " self cfg#" not in f" {cells[0]}", False
            else:
                is_read = "ucp_get" in cells[0]
        elif len(cells) == 3 and of_peer and is_read and cells[0] != "Range":
            bounds = _range(cells[0])
            if bounds is not None:
                found.append(ReadProtocol(*bounds, cells[1], tuple(f"{a}/{b}" for a, b in _LANE.findall(cells[2]))))
    return found


def used_for(protocols: Sequence[ReadProtocol], size_bytes: int) -> ReadProtocol | None:
    """The protocol for reads of a size; the last table wins, because UCX prints a new one when it chooses again."""
    fitting = [row for row in protocols if row.first_bytes <= size_bytes <= row.last_bytes]
    return fitting[-1] if fitting else None


def problem(log: str) -> str:
    """The first error UCX logged, without its stamp; empty where there is none."""
    for line in log.splitlines():
        _, mark, text = line.partition("UCX  ERROR")
        if mark:
            return " ".join(text.split())
    return ""


def _range(text: str) -> tuple[float, float] | None:
    first, dots, last = text.partition("..")
    try:
        return _bytes(first), _bytes(last) if dots else _bytes(first)
    except (KeyError, ValueError):
        return None


def _bytes(text: str) -> float:
    text = text.strip()
    if text == "inf":
        return math.inf
    unit = text[-1] if text and text[-1].isalpha() else ""
    return float(text.removesuffix(unit)) * _SIZES[unit]
