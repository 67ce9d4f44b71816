"""`baton generate` and `baton chat`: stream an answer into the terminal, then tell what it took."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from baton.v1 import inference_pb2 as pb
from interface.cli.branches_view import add_account, branches_view
from interface.cli.up_command import endpoint_of
from interface.client.client import Client
from interface.client.completion import Completion
from interface.client.credentials import Credentials

GIB = 1 << 30


def generate(
    prompt: str,
    name: str | None,
    endpoint: str | None,
    *,
    sampling: dict[str, Any],
    reasoning: dict[str, Any],
    scaling: dict[str, Any] | None = None,
    raw: bool,
    deadline_s: float,
    as_json: bool,
    credentials: Credentials | None = None,
) -> None:
    """Ask one question; see `baton generate --help`."""
    console = Console(highlight=False, quiet=as_json)
    source: dict[str, Any] = {"prompt": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}
    with Client(endpoint_of(name, endpoint), credentials=credentials) as client:
        if not as_json:
            console.print(Text("> " + prompt, style="bold"))
        options = {**source, **sampling, **_reasoning(reasoning)}
        if scaling is not None:
            options["inference_scaling"] = {**scaling, "progress": not as_json}
        completion = _stream(client, console, deadline_s=deadline_s, **options)
    if as_json:
        print(json.dumps(_as_dict(completion)))
    else:
        console.print()
        console.print(figures(completion))


def chat(
    name: str | None, endpoint: str | None, *, reasoning: dict[str, Any], credentials: Credentials | None = None
) -> None:
    """Talk until an empty line; see `baton chat --help`."""
    console = Console(highlight=False)
    messages: list[dict[str, str]] = []
    with Client(endpoint_of(name, endpoint), credentials=credentials) as client:
        while True:
            try:
                line = console.input("[bold cyan]you>[/] ").strip()
            except EOFError:
                return
            if not line:
                return
            messages.append({"role": "user", "content": line})
            completion = _stream(client, console, messages=messages, **_reasoning(reasoning))
            messages.append({"role": "assistant", "content": completion.text})
            timings, usage = completion.timings, completion.usage
            console.print(
                f"[dim]{usage.prompt_tokens} in ({usage.cached_tokens} cached), "
                f"{usage.reasoning_tokens + usage.answer_tokens} out, TTFT {timings.first_token_s * 1000:.0f} ms, "
                f"ITL p50 {timings.itl_p50_s * 1000:.1f} ms[/]\n"
            )


def _reasoning(options: dict[str, Any]) -> dict[str, Any]:
    names = {"effort": "reasoning_effort", "budget_tokens": "reasoning_budget_tokens"}
    return {names[key]: value for key, value in options.items()}


def _stream(client: Client, console: Console, **options: Any) -> Completion:
    completion = Completion()
    with contextlib.ExitStack() as shown:
        _print_events(client, console, completion, shown, options)
    console.print()
    return completion


def _print_events(
    client: Client, console: Console, completion: Completion, shown: contextlib.ExitStack, options: dict[str, Any]
) -> None:
    """Print text as it comes; before that, traces as they run, until the context is closed."""
    phase, live = pb.PHASE_UNSPECIFIED, Live(console=console, transient=False)
    for event in client.generate(**options):
        completion.add(event)
        if isinstance(event, pb.Progress):
            if not live.is_started:
                shown.enter_context(live)
            live.update(branches_view(event))
        elif isinstance(event, pb.Delta):
            shown.close()
        if not isinstance(event, pb.Delta) or not event.text:
            continue
        if event.phase != phase:
            if event.phase == pb.PHASE_REASONING:
                console.print(Rule("reasoning", style="dim", align="left"))
            elif phase == pb.PHASE_REASONING:
                console.print()
                console.print(Rule("answer", style="dim", align="left"))
            phase = event.phase
        style = "dim italic" if phase == pb.PHASE_REASONING else ""
        console.print(Text(event.text, style=style), end="", soft_wrap=True)


def figures(completion: Completion) -> Table:
    """The table that ends a demo."""
    timings, handoff, usage, workers = completion.timings, completion.handoff, completion.usage, completion.workers
    table = Table(show_header=False, title="what it took", title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column()
    served = f"{workers.prefill} → {workers.decode}" if workers.prefill else f"{workers.decode} (no handoff)"
    table.add_row("served by", served)
    table.add_row("ISL", f"{usage.prompt_tokens} tokens, {usage.cached_tokens} cached")
    output = usage.reasoning_tokens + usage.answer_tokens
    table.add_row("OSL", f"{output} tokens: {usage.reasoning_tokens} reasoning, {usage.answer_tokens} answer")
    table.add_row("TTFT", f"{timings.first_token_s * 1000:.0f} ms, of it {timings.queue_s * 1000:.1f} ms queue")
    if usage.reasoning_tokens:
        table.add_row("TTFAT", f"{timings.first_answer_token_s * 1000:.0f} ms")
    table.add_row("ITL", f"p50 {timings.itl_p50_s * 1000:.1f} ms, p99 {timings.itl_p99_s * 1000:.1f} ms")
    table.add_row("E2E", f"{timings.last_token_s:.2f} s")
    if handoff.bytes:
        rate = handoff.bytes / handoff.transfer_s / GIB if handoff.transfer_s else 0.0
        table.add_row(
            "KV handoff",
            f"{handoff.bytes / 2**20:.2f} MiB over {handoff.transport} in {handoff.transfer_s * 1000:.1f} ms "
            f"({rate:.2f} GiB/s); {handoff.handoff_s * 1000:.1f} ms to decode's first token",
        )
        table.add_row(
            "order",
            f"first token sent at {timings.first_token_s * 1000:.0f} ms, "
            f"transfer began at {timings.transfer_start_s * 1000:.0f} ms",
        )
    if completion.inference_scaling.strategy:
        add_account(table, completion.inference_scaling)
    table.add_row("cost", f"${completion.cost_usd:.8f} at the spec's prices")
    return table


def _as_dict(completion: Completion) -> dict[str, Any]:
    def plain(message: Any) -> Any:
        return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)

    return {
        "request_id": completion.request_id,
        "text": completion.text,
        "reasoning": completion.reasoning,
        "token_ids": completion.token_ids,
        "finish_reason": pb.FinishReason.Name(completion.finish_reason),
        "usage": plain(completion.usage),
        "workers": plain(completion.workers),
        "timings": plain(completion.timings),
        "handoff": plain(completion.handoff),
        "cost_usd": completion.cost_usd,
        "inference_scaling": plain(completion.inference_scaling),
    }
