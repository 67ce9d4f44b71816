"""The `inference_scaling` object of a request, of a reply, and of the chunks between them. Pure."""

from __future__ import annotations

from typing import Any

from baton.v1 import inference_pb2 as pb
from interface.http.fields import Fields

NAME = "inference_scaling"

_STATES = {
    pb.BRANCH_STATE_RUNNING: "running",
    pb.BRANCH_STATE_FINISHED: "finished",
    pb.BRANCH_STATE_CUT: "cut",
    pb.BRANCH_STATE_CANCELLED: "cancelled",
    pb.BRANCH_STATE_FAILED: "failed",
}


def read_scaling(fields: Fields) -> pb.InferenceScaling | None:
    """Take ``inference_scaling``.

    Raises:
        InvalidRequest: it is no object, or one of its fields is unknown or of another type.
    """
    tree = fields.tree(NAME)
    if tree is None:
        return None
    inside = fields.inside(tree, NAME)
    scaling = pb.InferenceScaling(
        strategy=inside.text("strategy") or "",
        agree=inside.number("agree"),
        return_candidates=bool(inside.flag("return_candidates")),
        progress=bool(inside.flag("progress")),
    )
    if (samples := inside.tree("samples")) is not None:
        limits = fields.inside(samples, f"{NAME}.samples")
        scaling.samples.min = limits.integer("min") or 0
        scaling.samples.max = limits.integer("max") or 0
        limits.finish()
    if (budget := inside.tree("budget")) is not None:
        _read_budget(fields.inside(budget, f"{NAME}.budget"), scaling.budget)
    if (answer := inside.tree("answer")) is not None:
        _read_answer(fields.inside(answer, f"{NAME}.answer"), scaling.answer)
    for name, value in (inside.tree("options") or {}).items():
        if not isinstance(value, str):
            raise fields.wrong(f"{NAME}.options", "expected an object of strings")
        scaling.options[name[:64]] = value[:64]
    inside.finish()
    return scaling


def report_object(report: pb.InferenceScalingReport) -> dict[str, Any]:
    """The ``inference_scaling`` of a reply."""
    counts, tokens = report.branches, report.tokens
    tree: dict[str, Any] = {
        "strategy": report.strategy,
        "stop_reason": report.stop_reason,
        "votes": dict(report.votes),
        "confidence": report.confidence,
        "branches": {
            "started": counts.started,
            "finished": counts.finished,
            "cancelled": counts.cancelled,
            "failed": counts.failed,
            "no_vote": counts.no_vote,
        },
        "tokens": {"winner": tokens.winner, "losers": tokens.losers},
        "seconds": report.seconds,
        "cost_usd": report.cost_usd,
    }
    if report.candidates:
        tree["candidates"] = [
            {
                "branch": each.branch,
                "answer": each.answer,
                "text": each.text,
                "tokens": each.tokens,
                "mean_logprob": each.mean_logprob,
                "cut": each.cut,
            }
            for each in report.candidates
        ]
    return tree


def progress_object(progress: pb.Progress) -> dict[str, Any]:
    """Where a request stands, for a chunk."""
    return {
        "votes": dict(progress.votes),
        "branches": [
            {"branch": each.branch, "state": _STATES[each.state], "tokens": each.tokens, "answer": each.answer}
            for each in progress.branches
        ],
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "cost_usd": progress.cost_usd,
    }


def _read_budget(fields: Fields, budget: pb.ScalingBudget) -> None:
    if (tokens := fields.integer("tokens")) is not None:
        budget.tokens = tokens
    if (seconds := fields.number("seconds")) is not None:
        budget.seconds = seconds
    if (usd := fields.number("usd")) is not None:
        budget.usd = usd
    fields.finish()


def _read_answer(fields: Fields, answer: pb.AnswerFormat) -> None:
    kinds: dict[str, Any] = {
        "regex": fields.text("regex"),
        "boxed": fields.flag("boxed"),
        "json_path": fields.text("json_path"),
        "last_number": fields.flag("last_number"),
    }
    given = {name: value for name, value in kinds.items() if value}
    if len(given) > 1:
        raise fields.wrong(next(iter(given)), f"expected one of {', '.join(kinds)}")
    for name, value in given.items():
        setattr(answer, name, value)
    fields.finish()
