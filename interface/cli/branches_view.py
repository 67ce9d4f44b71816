"""What `baton generate --strategy` draws while traces run: a line for each, the votes, and what is spent."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from baton.v1 import inference_pb2 as pb

_BAR_CHARS = 30
_STYLES = {
    pb.BRANCH_STATE_RUNNING: ("running", "cyan"),
    pb.BRANCH_STATE_FINISHED: ("finished", "green"),
    pb.BRANCH_STATE_CUT: ("cut, no vote", "yellow"),
    pb.BRANCH_STATE_CANCELLED: ("cancelled", "dim"),
    pb.BRANCH_STATE_FAILED: ("failed", "red"),
}


def branches_view(progress: pb.Progress) -> RenderableType:
    """The traces at one time."""
    longest = max((branch.tokens for branch in progress.branches), default=1) or 1
    table = Table(show_header=False, box=None, padding=(0, 1))
    for branch in progress.branches:
        word, style = _STYLES[branch.state]
        filled = round(_BAR_CHARS * branch.tokens / longest)
        bar = Text("█" * filled + "·" * (_BAR_CHARS - filled), style=style)
        answer = Text(branch.answer[:40], style="bold", no_wrap=True)
        table.add_row(f"{branch.branch}", bar, f"{branch.tokens:,} tokens", Text(word, style=style), answer)
    return Group(table, votes_line(progress.votes), spent_line(progress.tokens, progress.seconds, progress.cost_usd))


def votes_line(votes: Mapping[str, int]) -> Text:
    """Votes by answer, most first; empty while there are none."""
    line = Text()
    for answer, count in sorted(votes.items(), key=lambda item: -item[1])[:6]:
        line.append(f" {answer[:30]} ", style="bold reverse")
        line.append(f" {count}  ")
    return line


def spent_line(tokens: int, seconds: float, cost_usd: float) -> Text:
    """What it has cost so far."""
    return Text(f"{tokens:,} tokens, {seconds:.1f} s, ${cost_usd:.6f}", style="dim")


def add_account(table: Table, report: pb.InferenceScalingReport) -> None:
    """Rows of the table that ends a demo."""
    counts, tokens = report.branches, report.tokens
    votes = ", ".join(
        f"{answer[:30]}: {count}" for answer, count in sorted(report.votes.items(), key=lambda it: -it[1])
    )
    table.add_row("strategy", f"{report.strategy}, ended by {report.stop_reason}, confidence {report.confidence:.3f}")
    if votes:
        table.add_row("votes", Text(votes))
    table.add_row(
        "traces",
        f"{counts.started} started, {counts.finished} finished ({counts.no_vote} without a vote), "
        f"{counts.cancelled} cancelled, {counts.failed} failed",
    )
    table.add_row("tokens", f"{tokens.winner} of the answer's trace, {tokens.losers} of others")
