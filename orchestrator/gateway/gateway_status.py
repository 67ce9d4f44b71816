"""A fleet as the status shows it and as gauges have it; read alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from baton.v1 import cluster_pb2
from cluster.spec.config import Role, Transport
from orchestrator.gateway.fleet import KNOWN_STATES, Fleet
from orchestrator.gateway.fleet_worker import FleetWorker
from orchestrator.gateway.metrics import ModelMetrics


def worker_rows(workers: Iterable[FleetWorker]) -> list[cluster_pb2.WorkerStatus]:
    """The workers in order of role and name."""
    return [_row(each) for each in sorted(workers, key=lambda each: (each.member.role, each.member.worker_id))]


def total(counts: Iterable[cluster_pb2.RequestCounts]) -> cluster_pb2.RequestCounts:
    """The requests of several models."""
    whole = cluster_pb2.RequestCounts()
    for each in counts:
        for field, count in each.ListFields():
            setattr(whole, field.name, getattr(whole, field.name) + count)
    return whole


def set_gauges(metrics: ModelMetrics, fleet: Fleet, states: Counter[str]) -> None:
    """Set a model's gauges to the present; ``states`` are the runs'."""
    for state in ("queued", "prefilling", "decoding"):
        metrics.in_flight.labels(state).set(states[state])
    pool_states: Counter[tuple[str, str]] = Counter()
    for worker in fleet.workers.values():
        labels = (worker.member.role, worker.member.worker_id)
        metrics.kv_used.labels(*labels).set(worker.load.used_blocks / max(1, worker.member.total_blocks))
        metrics.kv_reserved.labels(*labels).set(sum(worker.reserved.values()))
        pool_states[worker.member.role, worker.member.state] += 1
    for role in Role:
        for state in KNOWN_STATES:
            metrics.workers.labels(role.value, state).set(pool_states[role.value, state])
    transports = fleet.pairs.transports()
    for transport in Transport:
        metrics.pairs.labels(transport.value).set(transports[transport.value])


def _row(worker: FleetWorker) -> cluster_pb2.WorkerStatus:
    member, load = worker.member, worker.load
    state = "draining" if load.draining else member.state
    return cluster_pb2.WorkerStatus(
        worker_id=member.worker_id,
        model=member.model,
        role=f"ROLE_{member.role.upper()}",
        state=f"WORKER_STATE_{state.upper()}",
        address=member.address,
        metrics_address=member.metrics_address,
        incarnation=member.incarnation,
        node=member.node,
        accelerator=member.accelerator,
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        total_blocks=member.total_blocks,
        used_blocks=load.used_blocks,
        reserved_blocks=sum(worker.reserved.values()),
        block_size_tokens=member.block_size_tokens,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        pid=member.pid,
        preemptions=load.preemptions,
        spot=member.spot,
        attention_kernels=member.attention_kernels,
    )
