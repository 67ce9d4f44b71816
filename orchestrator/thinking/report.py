"""What callers get of a strategy's work beside the answer: progress on the way, and the report at the end."""

from __future__ import annotations

from collections.abc import Mapping

from baton.v1 import inference_pb2 as pb
from orchestrator.policy.thinking.budget import Meters
from orchestrator.policy.thinking.run import ThinkingRun, ends, tokens
from orchestrator.policy.thinking.state import End
from orchestrator.thinking.ask import ThinkingAsk
from orchestrator.thinking.record import TraceRecord

STATES = {
    None: pb.BRANCH_STATE_RUNNING,
    End.FINISHED: pb.BRANCH_STATE_FINISHED,
    End.CUT: pb.BRANCH_STATE_CUT,
    End.CANCELLED: pb.BRANCH_STATE_CANCELLED,
    End.FAILED: pb.BRANCH_STATE_FAILED,
}


def votes(run: ThinkingRun) -> dict[str, int]:
    """Votes by answer, of branches that made all of their tokens."""
    counted: dict[str, int] = {}
    for trace in run.ended:
        if trace.end is End.FINISHED and trace.answer is not None:
            counted[trace.answer] = counted.get(trace.answer, 0) + 1
    return counted


def progress(run: ThinkingRun, made_tokens: Mapping[int, int], meters: Meters) -> pb.Progress:
    """Where a request stands; ``made_tokens`` are of all branches, by number."""
    ended = {trace.branch: trace for trace in run.ended}
    branches = []
    for number, count in made_tokens.items():
        trace = ended.get(number)
        state = STATES[trace.end if trace is not None else None]
        answer = trace.answer or "" if trace is not None else ""
        branches.append(pb.BranchProgress(branch=number, state=state, tokens=count, answer=answer))
    return pb.Progress(
        votes=votes(run),
        branches=branches,
        tokens=sum(made_tokens.values()),
        seconds=meters.seconds,
        cost_usd=meters.usd,
    )


def report(
    ask: ThinkingAsk, run: ThinkingRun, records: Mapping[int, TraceRecord], meters: Meters
) -> pb.InferenceScalingReport:
    """The account of a request that was answered."""
    by_end, (winner_tokens, loser_tokens) = ends(run), tokens(run)
    counted = votes(run)
    finished = [trace for trace in run.ended if trace.end in (End.FINISHED, End.CUT)]
    message = pb.InferenceScalingReport(
        strategy=ask.name,
        stop_reason=run.choice.reason if run.choice is not None else "",
        votes=counted,
        confidence=run.choice.confidence if run.choice is not None else 0.0,
        branches=pb.BranchCounts(
            started=run.started,
            finished=by_end["finished"],
            cancelled=by_end["cancelled"],
            failed=by_end["failed"],
            no_vote=len(finished) - sum(counted.values()) if run.strategy.extracts else 0,
        ),
        tokens=pb.BranchTokens(winner=winner_tokens, losers=loser_tokens),
        seconds=meters.seconds,
        cost_usd=meters.usd,
    )
    if ask.return_candidates:
        for trace in finished:
            message.candidates.add(
                branch=trace.branch,
                answer=trace.answer or "",
                text=records[trace.branch].answer_text,
                tokens=trace.tokens,
                mean_logprob=trace.mean_logprob,
                cut=trace.end is End.CUT,
            )
    return message
