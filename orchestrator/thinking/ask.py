"""What a request asks of its inference scaling, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from cluster.spec.config import TenantSettings
from orchestrator.policy.thinking.answers import Extractor
from orchestrator.policy.thinking.budget import Budget
from orchestrator.policy.thinking.state import Settings, Strategy
from orchestrator.policy.thinking.strategies import STRATEGIES

DEFAULT_BRANCHES = 8
DEFAULT_AGREE = 0.95
FIELD = "inference_scaling"


@dataclass(frozen=True, slots=True)
class ThinkingAsk:
    """A strategy with what it may spend, and how answers are read and reported."""

    name: str
    strategy: Strategy
    budget: Budget
    extract: Extractor
    return_candidates: bool
    progress: bool


def read_ask(request: pb.GenerateRequest, max_branches: int, tenant: TenantSettings) -> ThinkingAsk | None:
    """Read a request's inference scaling, within what its tenant may have; None where it asks for none.

    Raises:
        InvalidRequest: it asks for what cannot be, or for more branches than are allowed.
    """
    if not request.HasField("inference_scaling"):
        return None
    asked, max_branches = request.inference_scaling, min(max_branches, tenant.max_branches or max_branches)
    if request.sampling.n > 1:
        raise InvalidRequest(f"{FIELD} gives one answer; leave n out, or set it to 1", field="sampling.n")
    if request.sampling.HasField("prompt_logprobs"):
        raise InvalidRequest(f"prompt_logprobs do not go with {FIELD}", field="sampling.prompt_logprobs")
    if request.sampling.HasField("max_tokens") and not request.sampling.max_tokens:
        raise InvalidRequest(f"max_tokens=0 leaves nothing to {FIELD}", field="sampling.max_tokens")
    if request.HasField("resume"):
        raise InvalidRequest(f"a generation with {FIELD} cannot be resumed; send it again", field="resume")
    name = asked.strategy or "vote"
    if name not in STRATEGIES:
        _wrong("strategy", f"{name[:64]!r}: expected one of {', '.join(sorted(STRATEGIES))}")
    strategy = STRATEGIES[name](_settings(asked, max_branches))
    if strategy.cap > max_branches:
        _wrong("strategy", f"{name!r} takes {strategy.cap} branches, and {max_branches} are allowed")
    return ThinkingAsk(
        name,
        strategy,
        _budget(asked.budget, tenant.max_answer_usd),
        _extractor(asked.answer),
        asked.return_candidates,
        asked.progress,
    )


def _settings(asked: pb.InferenceScaling, max_branches: int) -> Settings:
    most = asked.samples.max or min(max(DEFAULT_BRANCHES, asked.samples.min), max_branches)
    if most > max_branches:
        _wrong("samples.max", f"{most}: expected at most {max_branches}")
    if asked.samples.min > most:
        _wrong("samples.min", f"{asked.samples.min}: expected at most samples.max, {most}")
    agree = asked.agree if asked.HasField("agree") else DEFAULT_AGREE
    if not 0.5 < agree < 1:
        _wrong("agree", f"{agree:g}: expected above 0.5 and below 1")
    return Settings(asked.samples.min, most, agree, dict(asked.options))


def _budget(asked: pb.ScalingBudget, max_usd: float | None) -> Budget:
    for name in ("tokens", "seconds", "usd"):
        if asked.HasField(name) and not getattr(asked, name) > 0:
            _wrong(f"budget.{name}", f"{getattr(asked, name):g}: expected above 0")
    usd = [asked.usd] if asked.HasField("usd") else []
    return Budget(
        asked.tokens if asked.HasField("tokens") else None,
        asked.seconds if asked.HasField("seconds") else None,
        min([*usd, *([] if max_usd is None else [max_usd])], default=None),
    )


def _extractor(asked: pb.AnswerFormat) -> Extractor:
    kind = asked.WhichOneof("kind")
    return Extractor() if kind is None else Extractor(**{kind: getattr(asked, kind)})


def _wrong(name: str, text: str) -> NoReturn:
    raise InvalidRequest(f"{FIELD}.{name}={text}", field=f"{FIELD}.{name}")
