"""What `baton doctor` finds: checks of this machine, and every prefill-decode link measured and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.errors import TransferError
from cluster.placement import worker_plans
from cluster.spec.config import ClusterSpec, Role, Transport
from doctor.checks import Check, Gpu, State, gpus, has_nvlink, nic_rate, rdma_ports
from kv_transfer.link_expectation import GIB, LinkFacts, Verdict, expected, judge
from kv_transfer.link_probe import LinkMeasurement, ProbeRequest, probe_local
from kv_transfer.transport import Endpoint, choose, ucx_tls

HERE = "localhost"


@dataclass(frozen=True, slots=True)
class Pair:
    """Prefill and decode workers that share one kind of link. ``names`` lists all; one is measured for them all."""

    source: Endpoint
    target: Endpoint
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinkReport:
    """One measured pair."""

    pair: Pair
    allowed: tuple[Transport, ...]
    verdict: Verdict
    measurement: LinkMeasurement | None = None
    expected_bytes_per_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``. Seconds, and bytes per second."""
        found = self.measurement
        return {
            "pairs": list(self.pair.names),
            "source_host": self.pair.source.host,
            "target_host": self.pair.target.host,
            "allowed": [transport.value for transport in self.allowed],
            "used": found.used if found else None,
            "lanes": list(found.protocol.lanes) if found and found.protocol else [],
            "ucx_tls": found.ucx_tls if found else None,
            "latency_s": found.fit.latency_s if found else None,
            "bytes_per_s": found.fit.bytes_per_s if found else None,
            "fit": {"fixed_s": found.fit.fixed_s, "bytes_per_s": found.fit.fitted_bytes_per_s} if found else None,
            "reads_s": [list(row) for row in found.fit.times_s] if found else [],
            "handshake_s": found.handshake_s if found else None,
            "copy_bytes_per_s": found.copy_bytes_per_s if found else None,
            "expected_bytes_per_s": self.expected_bytes_per_s,
            "ratio": self.verdict.ratio,
            "ok": self.verdict.ok,
            "verdict": self.verdict.sentence,
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything the doctor found."""

    checks: tuple[Check, ...] = ()
    links: tuple[LinkReport, ...] = ()
    notes: tuple[str, ...] = field(default=())
    wrong_answers: tuple[str, ...] = ()
    """Of workers and pairs of a running cluster."""

    @property
    def problems(self) -> list[str]:
        """One sentence for each failure; empty when all is well."""
        failed = [check for check in self.checks if check.state is State.FAIL]
        return [
            *[f"{check.name}: {check.found}; {check.advice}" for check in failed],
            *[f"{link.pair.names[0]}: {link.verdict.sentence}" for link in self.links if not link.verdict.ok],
            *self.wrong_answers,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "checks": [asdict(check) for check in self.checks],
            "links": [link.to_dict() for link in self.links],
            "notes": list(self.notes),
        }


def tls_of(spec: ClusterSpec) -> str:
    """``UCX_TLS`` as the spec's workers have it."""
    return ucx_tls(spec.transfer.transports, on_cpu=_on_cpu(spec))


def _on_cpu(spec: ClusterSpec) -> bool:
    return not any(pool.accelerators_per_worker for _, pool in spec.pools.items() if pool.replicas)


def local_pairs(spec: ClusterSpec, *, host: str = HERE) -> list[Pair]:
    """The spec's pairs as they would be on this machine: all on one host, so all of one kind.

    Example:
        >>> from cluster.spec.config import load
        >>> [pair.names for pair in local_pairs(load())]
        [('prefill-0 -> decode-0',)]
    """
    on_cpu = _on_cpu(spec)
    rdma = bool(rdma_ports()) if not on_cpu else False
    plans = worker_plans(spec)
    names = tuple(
        f"{prefill.worker_id} -> {decode.worker_id}"
        for prefill in plans
        if prefill.role is Role.PREFILL
        for decode in plans
        if decode.role is Role.DECODE
    )
    if not names:
        return []
    domain = "" if on_cpu else host
    source, target = names[0].split(" -> ")
    return [
        Pair(
            Endpoint(source, host, on_cpu=on_cpu, nvlink_domain=domain, rdma=rdma),
            Endpoint(target, host, on_cpu=on_cpu, nvlink_domain=domain, rdma=rdma),
            names,
        )
    ]


Measure = Callable[[Pair, ProbeRequest], LinkMeasurement]
"""Runs a probe where the pair's workers are. Locally `measure_here`; on a cluster, `ProbeServer` in a Ray actor on
the source's node and `probe_client` in a task on the target's."""


def measure_here(pair: Pair, request: ProbeRequest) -> LinkMeasurement:
    """Both ends as two processes of this machine."""
    return probe_local(request)


def examine_links(
    spec: ClusterSpec,
    pairs: Sequence[Pair],
    *,
    min_ratio: float,
    measure: Measure = measure_here,
    sizes_bytes: tuple[int, ...] | None = None,
) -> Iterator[LinkReport]:
    """Measure and judge each pair; a link that cannot be measured is a failed one."""
    allowed = tuple(spec.transfer.transports)
    memory: Literal["cpu", "cuda"] = "cpu" if _on_cpu(spec) else "cuda"
    devices = gpus() if memory == "cuda" else []
    for pair in pairs:
        request = ProbeRequest(ucx_tls=tls_of(spec), memory=memory, client_device=1 if len(devices) > 1 else 0)
        if sizes_bytes is not None:
            request = ProbeRequest(
                ucx_tls=request.ucx_tls,
                memory=memory,
                client_device=request.client_device,
                sizes_bytes=sizes_bytes,
            )
        if memory == "cuda" and not devices and pair.source.host == HERE:
            yield LinkReport(pair, allowed, Verdict(False, "not measured: no GPU is visible on this machine", None))
            continue
        best = choose(pair.source, pair.target, allowed)
        if best is None:
            verdict = judge(bytes_per_s=0, used="", allowed=allowed, best=None, expectation=None, min_ratio=min_ratio)
            yield LinkReport(pair, allowed, verdict)
            continue
        try:
            found = measure(pair, request)
        except TransferError as error:
            yield LinkReport(pair, allowed, Verdict(False, f"not measured: {error.message}", None))
            continue
        goal = expected(best, _facts(pair, found, devices))
        verdict = judge(
            bytes_per_s=found.fit.bytes_per_s,
            used=found.used,
            allowed=allowed,
            best=best,
            expectation=goal,
            min_ratio=min_ratio,
            intact=found.intact,
        )
        yield LinkReport(pair, allowed, verdict, found, goal.bytes_per_s if goal else None)


def _facts(pair: Pair, found: LinkMeasurement, devices: Sequence[Gpu]) -> LinkFacts:
    first = devices[0] if devices else None
    return LinkFacts(
        same_host=pair.source.host == pair.target.host,
        copy_bytes_per_s=found.copy_bytes_per_s,
        gpu=first.name if first else "",
        nvlink=has_nvlink() if first else None,
        pcie_generation=first.pcie_generation if first else 0,
        pcie_lanes=first.pcie_lanes if first else 0,
        rdma_bits_per_s=max(rdma_ports().values(), default=0.0),
        nic_bits_per_s=nic_rate(),
    )


def bandwidth_text(bytes_per_s: float | None) -> str:
    """GiB/s for a table.

    Example:
        >>> bandwidth_text(3 * 2**30), bandwidth_text(None)
        ('3.00', '-')
    """
    return "-" if bytes_per_s is None else f"{bytes_per_s / GIB:.2f}"
