"""`baton doctor`'s check of a running cluster: every worker and every pair answers the canary's prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import SecuritySettings

Row = registry_pb2.CheckAnswersResponse


def answers_of(registry: str, security: SecuritySettings | None = None) -> list[Row]:
    """Have the controller at ``registry`` ask all workers.

    Raises:
        ConfigError: it does not.
    """
    return asyncio.run(_ask(registry, security))


async def _ask(registry: str, security: SecuritySettings | None) -> list[Row]:
    rpc = InternalRpc(security)
    async with rpc.channel(registry) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        try:
            call = stub.CheckAnswers(registry_pb2.CheckAnswersRequest(), timeout=600, metadata=rpc.metadata)
            return [row async for row in call]
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"the controller at {registry} did not ask its workers: {error.details()}") from error


def name(row: Row) -> str:
    """The worker, or the pair."""
    return f"{row.prefill_id} -> {row.worker_id}" if row.prefill_id else str(row.worker_id)


def problems(rows: Sequence[Row]) -> list[str]:
    """One sentence for each wrong or missing answer."""
    return [
        f"{name(row)}: off by {row.deviation_nat:.3g} nat from {row.against} (prompt {row.prompt}); {row.sentence}"
        if row.against
        else f"{name(row)}: no answer: {row.sentence}"
        for row in rows
        if not row.right
    ]


def to_dict(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Plain data for ``--json``."""
    return [
        MessageToDict(row, preserving_proto_field_name=True, always_print_fields_with_no_presence=True) for row in rows
    ]


def table(rows: Sequence[Row]) -> Table:
    """A line for each worker and each pair."""
    made = Table(title="Answers to the canary's prompts", title_justify="left")
    made.add_column("worker or pair")
    made.add_column("off by, nat", justify="right")
    made.add_column("from")
    made.add_column("s", justify="right")
    made.add_column("")
    for row in rows:
        made.add_row(
            name(row),
            f"{row.deviation_nat:.4f}" if row.against else "-",
            row.against or "no answer",
            f"{row.duration_s:.2f}",
            "[green]right[/]" if row.right else "[bold red]wrong[/]",
        )
    return made
