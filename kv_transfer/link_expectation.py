"""What a link should give, and whether it does. Pure.

The table is of 2026-11; each figure names its source. Links inside one machine are held against a plain memory copy
that was measured in the same minute, because CPUs differ more than any table could say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.spec.config import Transport

GIB = 1 << 30

NVLINK_BYTES_PER_S: dict[str, float] = {
    "GB200": 900e9,
    "B200": 900e9,
    "H200": 450e9,
    "H100": 450e9,
    "H800": 200e9,
    "A100": 300e9,
    "A800": 200e9,
    "V100": 150e9,
}
"""One direction, per GPU: half of what NVIDIA's datasheets give for both (NVLink 2 to 5), read 2026-11.
PCIe cards of the same name have no NVSwitch; `LinkFacts.nvlink` says whether there is one."""

PCIE_BYTES_PER_S_PER_LANE: dict[int, float] = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""One direction, after line coding: PCI-SIG base specifications 3.0 to 6.0."""

NVLINK_SHARE = 0.8
"""Assumed, not measured here: peer copies pay for packet headers and flow control."""
PCIE_SHARE = 0.78
"""49 GB/s of 63 on PCIe 5 x16, pushed between two GPUs without NVLink (FACTS of this project, 2026-11)."""
RDMA_SHARE = 0.99
"""49.5 GB/s of a 400 Gb/s NIC with NIXL (FACTS of this project, 2026-11)."""
NIC_SHARE = 0.9
"""TCP and IP headers at 1,500-byte frames take 5 %; the rest is margin."""
SHARED_MEMORY_SHARE = 0.6
"""Of a plain copy. The kernel copies once (cma) but pins page by page: 0.53 to 0.77 measured, 2026-11."""
TCP_CPU_SHARE = 0.06
"""Of a plain copy. UCX reads over TCP in software: 0.42 GiB/s beside a copy of 5.5 to 7.9, 0.51 beside 10.8."""


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What is known of the hardware between two workers. 0, empty or None where it is not known."""

    same_host: bool
    copy_bytes_per_s: float
    gpu: str = ""
    nvlink: bool | None = None
    pcie_generation: int = 0
    pcie_lanes: int = 0
    rdma_bits_per_s: float = 0
    nic_bits_per_s: float = 0


@dataclass(frozen=True, slots=True)
class Expectation:
    """Bandwidth in bytes per second, and where the number comes from."""

    bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a link is good enough, and a sentence that says why and what to do. ``ratio`` is None without an
    expectation."""

    ok: bool
    sentence: str
    ratio: float | None


def expected(transport: Transport, facts: LinkFacts) -> Expectation | None:
    """What ``transport`` should give between the two workers; None where the hardware is not known well enough.

    Example:
        >>> expected(Transport.SHARED_MEMORY, LinkFacts(same_host=True, copy_bytes_per_s=10e9))
        Expectation(bytes_per_s=6000000000.0, source='0.6 of a plain copy measured beside it')
    """
    match transport:
        case Transport.NVLINK:
            return _between_gpus(facts)
        case Transport.RDMA if facts.rdma_bits_per_s:
            rate = facts.rdma_bits_per_s
            return Expectation(rate / 8 * RDMA_SHARE, f"{RDMA_SHARE:g} of a port of {rate / 1e9:g} Gb/s")
        case Transport.SHARED_MEMORY if facts.copy_bytes_per_s > 0:
            return Expectation(
                facts.copy_bytes_per_s * SHARED_MEMORY_SHARE,
                f"{SHARED_MEMORY_SHARE:g} of a plain copy measured beside it",
            )
        case Transport.TCP if facts.copy_bytes_per_s > 0:
            by_cpu = facts.copy_bytes_per_s * TCP_CPU_SHARE
            by_wire = facts.nic_bits_per_s / 8 * NIC_SHARE
            if not facts.same_host and 0 < by_wire < by_cpu:
                return Expectation(by_wire, f"{NIC_SHARE:g} of a NIC of {facts.nic_bits_per_s / 1e9:g} Gb/s")
            return Expectation(by_cpu, f"{TCP_CPU_SHARE:g} of a plain copy measured beside it")
    return None


def _between_gpus(facts: LinkFacts) -> Expectation | None:
    if facts.nvlink is not False:
        wire = next((rate for name, rate in NVLINK_BYTES_PER_S.items() if name in facts.gpu), 0.0)
        if wire:
            return Expectation(wire * NVLINK_SHARE, f"{NVLINK_SHARE:g} of NVLink on {facts.gpu}")
    lane = PCIE_BYTES_PER_S_PER_LANE.get(facts.pcie_generation, 0.0)
    if facts.nvlink is False and lane and facts.pcie_lanes:
        return Expectation(
            lane * facts.pcie_lanes * PCIE_SHARE,
            f"{PCIE_SHARE:g} of PCIe {facts.pcie_generation} x{facts.pcie_lanes}, there is no NVLink",
        )
    return None


_ADVICE: dict[Transport, str] = {
    Transport.NVLINK: "check `nvidia-smi topo -m` and that both workers see both GPUs (no per-container GPU isolation)",
    Transport.RDMA: "check `ibstat`, UCX_NET_DEVICES, and that the container may lock memory (`ulimit -l unlimited`)",
    Transport.SHARED_MEMORY: "run both workers in one PID and IPC namespace and allow ptrace between them (UCX's cma)",
    Transport.TCP: "check the NIC's speed, UCX_NET_DEVICES and what else uses the CPU",
}


def judge(
    *,
    bytes_per_s: float,
    used: str,
    allowed: Sequence[Transport],
    best: Transport | None,
    expectation: Expectation | None,
    min_ratio: float,
    intact: bool = True,
) -> Verdict:
    """Compare a measured link with what it should be.

    Args:
        bytes_per_s: Measured bandwidth.
        used: The transport UCX names; empty where it does not say.
        allowed: Transports of the spec.
        best: The best allowed transport that the two workers' places offer (`transport.choose`).
        expectation: What ``best`` should give.
        min_ratio: Measured over expected, below which the link has failed.
        intact: Whether the bytes arrived as they were sent.

    Example:
        >>> judge(bytes_per_s=0.4e9, used="tcp", allowed=list(Transport), best=Transport.SHARED_MEMORY,
        ...       expectation=Expectation(4e9, "a table"), min_ratio=0.5).ok
        False
    """
    if not intact:
        return Verdict(False, "the bytes that arrived are not those that were sent: do not serve over this link", None)
    names = ", ".join(transport.value for transport in allowed)
    by = used or f"one of {names} (UCX does not say which)"
    if best is None:
        return Verdict(False, f"none of the allowed transports ({names}) can join these workers", None)
    rate = f"{bytes_per_s / GIB:.2f} GiB/s over {by}"
    worse = used in [transport.value for transport in list(Transport)[list(Transport).index(best) + 1 :]]
    if expectation is None:
        if worse:
            sentence = f"{rate}, though {best.value} should be used: {_ADVICE[best]}"
            return Verdict(False, sentence, None)
        return Verdict(True, f"{rate}; nothing is known of what this hardware should give", None)
    ratio = bytes_per_s / expectation.bytes_per_s
    goal = f"the {expectation.bytes_per_s / GIB:.2f} GiB/s that {best.value} should give ({expectation.source})"
    if ratio >= min_ratio:
        also = f"; UCX chose {used} where {best.value} was expected" if worse else ""
        return Verdict(True, f"{rate}, {ratio:.2f} of {goal}{also}", ratio)
    fell = f"UCX fell back to {used}; " if worse else ""
    return Verdict(False, f"{rate} is only {ratio:.2g} of {goal}: {fell}{_ADVICE[best]}", ratio)
