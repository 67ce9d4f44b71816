"""Which way KV bytes travel between two workers, and what UCX may use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.spec.config import Transport

_UCX_TLS: dict[Transport, str] = {
    Transport.NVLINK: "cuda_ipc,cuda_copy",
    Transport.RDMA: "rc,ud,cuda_copy",
    Transport.SHARED_MEMORY: "sm",
    Transport.TCP: "tcp",
}
"""UCX transport names: openucx documentation, `ucx_info -d`. ``sm`` stands for posix, sysv, cma, knem and xpmem."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One worker as the transports see it. ``nvlink_domain`` and ``rdma`` come from the node's labels."""

    worker_id: str
    host: str
    on_cpu: bool
    nvlink_domain: str = ""
    rdma: bool = False


def choose(source: Endpoint, target: Endpoint, allowed: Sequence[Transport]) -> Transport | None:
    """The best transport that both ends have and the spec allows; None where there is none.

    Example:
        >>> a, b = Endpoint("p", "h1", on_cpu=True), Endpoint("d", "h1", on_cpu=True)
        >>> choose(a, b, [Transport.NVLINK, Transport.SHARED_MEMORY, Transport.TCP])
        <Transport.SHARED_MEMORY: 'shared_memory'>
    """
    same_host = source.host == target.host
    gpus = not source.on_cpu and not target.on_cpu
    same_domain = bool(source.nvlink_domain) and source.nvlink_domain == target.nvlink_domain
    possible = {
        Transport.NVLINK: gpus and same_domain,
        Transport.RDMA: source.rdma and target.rdma,
        Transport.SHARED_MEMORY: same_host and source.on_cpu and target.on_cpu,
        Transport.TCP: True,
    }
    return next((transport for transport in Transport if transport in allowed and possible[transport]), None)


def ucx_tls(allowed: Sequence[Transport], *, on_cpu: bool) -> str:
    """Value of ``UCX_TLS`` for an engine: what the spec allows, and never more.

    UCX falls back to TCP without a word where it may, so `baton doctor` names what is used. Shared memory alone does
    not start NIXL: UCX wants ``tcp`` beside it for active messages.

    Example:
        >>> ucx_tls([Transport.SHARED_MEMORY, Transport.TCP], on_cpu=True)
        'self,sm,tcp'
    """
    names = ["self"]
    for transport in Transport:
        if transport not in allowed or (on_cpu and transport is Transport.NVLINK):
            continue
        names += [name for name in _UCX_TLS[transport].split(",") if not (on_cpu and name.startswith("cuda"))]
    return ",".join(dict.fromkeys(names))
