"""A scripted `Backend`: what it is given to say, in order, to every caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from baton.v1 import cluster_pb2, inference_pb2
from cluster.errors import ModelNotFound
from orchestrator.gateway.delta_sink import DeltaSink
from orchestrator.policy.phases import Phase

MODEL = "tiny-thinker"
Event = inference_pb2.GenerateResponse


class Stall:
    """Wait for ever, until the stream is closed."""


Step = Event | BaseException | Stall | asyncio.Event
"""An ``asyncio.Event`` is waited for."""
Script = Callable[[inference_pb2.GenerateRequest], Sequence[Step]]


@dataclass
class FakeBackend:
    """Plays ``script(request)`` for each request and remembers what happened.

    ``cancelled`` is set when a stream was closed before its script's end, ``idle`` when the last one ended.
    """

    script: Script = field(default_factory=lambda: reply())
    requests: list[inference_pb2.GenerateRequest] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0

    async def generate(
        self, request: inference_pb2.GenerateRequest, sink: DeltaSink | None = None
    ) -> AsyncIterator[Event]:
        self.requests.append(request)
        self.running += 1
        self.started.set()
        self.idle.clear()
        done = False
        try:
            for step in self.script(request):
                match step:
                    case BaseException():
                        done = True
                        raise step
                    case asyncio.Event():
                        await step.wait()
                    case Stall():
                        await asyncio.Event().wait()
                    case _:
                        await asyncio.sleep(0)
                        if sink is None or not _sent_at_once(step, sink):
                            yield step
            done = True
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()
            if not done:
                self.cancelled.set()

    async def tokenize(self, request: inference_pb2.GenerateRequest, *, special_tokens: bool) -> list[int]:
        """Its tokens are bytes; 256 is bos."""
        if request.model not in ("", MODEL):
            raise ModelNotFound(f"no model {request.model!r} here")
        text = "".join(message.content for message in request.chat.messages) or request.prompt
        return [256] * special_tokens + list(text.encode())

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        if model not in ("", MODEL):
            raise ModelNotFound(f"no model {model!r} here")
        return bytes(token_ids).decode()

    def token_texts(self, model: str, token_ids: Sequence[int]) -> list[str]:
        return [chr(token) if token < 256 else "<s>" for token in token_ids]

    def models(self) -> list[inference_pb2.Model]:
        return [inference_pb2.Model(name=MODEL, max_model_len_tokens=2048, reasoning=True)]

    def status(self) -> cluster_pb2.Status:
        return cluster_pb2.Status(
            cluster="test",
            model=MODEL,
            version="0",
            uptime_s=1.5,
            workers=[
                cluster_pb2.WorkerStatus(
                    worker_id="decode-0",
                    role=cluster_pb2.ROLE_DECODE,
                    state=cluster_pb2.WORKER_STATE_READY,
                    output_tokens=1 << 40,
                )
            ],
            requests=cluster_pb2.RequestCounts(finished=3),
        )


def _sent_at_once(event: Event, sink: DeltaSink) -> bool:
    """Send a delta with nothing but text past the iterator, as the gateway does."""
    delta = event.delta
    plain = event.HasField("delta") and not (delta.finish_reason or delta.logprobs or delta.stop_matched)
    if not plain or not sink.ready:
        return False
    sink.take(delta.choice, Phase(delta.phase), delta.text, list(delta.token_ids))
    return True


def script(*steps: Step) -> Script:
    """The same steps for every request."""
    return lambda request: steps


def admitted(prompt_tokens: int = 5, choice: int = 0, request_id: str = "r") -> Event:
    workers = inference_pb2.Workers(prefill="prefill-0", decode="decode-0")
    return Event(
        admitted=inference_pb2.Admitted(
            request_id=request_id, prompt_tokens=prompt_tokens, workers=workers, queue_s=0.001, choice=choice
        )
    )


def first_token(choice: int = 0) -> Event:
    return Event(first_token=inference_pb2.FirstToken(choice=choice, ttft_s=0.01, cached_tokens=2))


def prompt_of(request: inference_pb2.GenerateRequest) -> list[int]:
    """Its tokens are its bytes."""
    return list(request.prompt_token_ids.ids) or list(request.prompt.encode()) or [72, 105]


def prompt_logprobs(token_ids: Sequence[int], count: int) -> list[Event]:
    """Two events, or one for a single token; each place has values of its own, and the last one has none at all."""
    rows = [inference_pb2.TokenLogprobs(chosen=inference_pb2.Logprob(token_id=token_ids[0], text=chr(token_ids[0])))]
    for place, token in enumerate(token_ids[1:], start=1):
        value = float("-inf") if place == len(token_ids) - 1 and place > 1 else -place / 4
        chosen = inference_pb2.Logprob(token_id=token, text=chr(token), logprob=value, rank=2)
        top = [
            inference_pb2.Logprob(token_id=1000 + i, text=f"p{i}", logprob=-(1 + i) / 8, rank=1 + i)
            for i in range(count)
        ]
        rows.append(inference_pb2.TokenLogprobs(chosen=chosen, top=top))
    cut = (len(rows) + 1) // 2
    pieces = {0: rows[:cut], cut: rows[cut:]}
    return [
        Event(prompt_logprobs=inference_pb2.PromptLogprobs(first_position=first, tokens=piece))
        for first, piece in pieces.items()
        if piece
    ]


def delta(
    text: str,
    *,
    choice: int = 0,
    reasoning: bool = False,
    finish: str = "",
    stop_matched: str = "",
    ids: Sequence[int] = (7,),
    logprobs: int | None = None,
) -> Event:
    rows = []
    if logprobs is not None:
        for token_id in ids:
            chosen = inference_pb2.Logprob(token_id=token_id, logprob=-0.5, text=text, rank=1)
            top = [
                inference_pb2.Logprob(token_id=1000 + i, logprob=-1.0 - i, text=f"alt{i}", rank=2 + i)
                for i in range(max(0, logprobs - 1))
            ]
            rows.append(inference_pb2.TokenLogprobs(chosen=chosen, top=top))
    return Event(
        delta=inference_pb2.Delta(
            choice=choice,
            phase=inference_pb2.PHASE_REASONING if reasoning else inference_pb2.PHASE_ANSWER,
            text=text,
            token_ids=ids,
            logprobs=rows,
            finish_reason=inference_pb2.FinishReason.Value(f"FINISH_REASON_{finish or 'UNSPECIFIED'}"),
            stop_matched=stop_matched,
        )
    )


def finished(
    *, prompt: int = 5, cached: int = 2, reasoning: int = 0, answer: int = 2, choices: int = 1, finish: str = "STOP"
) -> Event:
    usage = inference_pb2.Usage(
        prompt_tokens=prompt, cached_tokens=cached, reasoning_tokens=reasoning, answer_tokens=answer
    )
    return Event(
        finished=inference_pb2.Finished(
            request_id="r",
            usage=usage,
            cost_usd=0.25,
            choices=[
                inference_pb2.ChoiceSummary(
                    choice=index,
                    finish_reason=inference_pb2.FinishReason.Value(f"FINISH_REASON_{finish}"),
                    usage=usage,
                    workers=inference_pb2.Workers(prefill="prefill-0", decode="decode-0"),
                    timings=inference_pb2.Timings(first_token_s=0.01, last_token_s=0.02),
                    handoff=inference_pb2.HandoffFigures(transport="tcp", bytes=4096, tokens=6),
                )
                for index in range(choices)
            ],
        )
    )


def reply(
    answer: Sequence[str] = ("Hel", "lo"),
    reasoning: Sequence[str] = (),
    finish: str = "STOP",
    *,
    stop_matched: str = "",
    reasoning_closed: bool = False,
) -> Script:
    """A whole answer for each choice asked for, with log-probabilities where asked for."""

    def play(request: inference_pb2.GenerateRequest) -> Sequence[Step]:
        sampling = request.sampling
        logprobs = sampling.logprobs if sampling.HasField("logprobs") else None
        count = sampling.n or 1
        steps: list[Step] = [admitted(choice=choice) for choice in range(count)]
        if sampling.HasField("prompt_logprobs"):
            steps += prompt_logprobs(prompt_of(request), sampling.prompt_logprobs)
        if sampling.HasField("max_tokens") and sampling.max_tokens == 0:
            return [*steps, delta("", ids=(), finish="LENGTH"), finished(answer=0, finish="LENGTH")]
        texts = [(text, True) for text in reasoning] + [(text, False) for text in answer]
        for position, (text, thinks) in enumerate(texts):
            for choice in range(count):
                if position == 0:
                    steps.append(first_token(choice))
                last = position == len(texts) - 1
                step = delta(
                    text,
                    choice=choice,
                    reasoning=thinks,
                    finish=finish if last else "",
                    ids=(100 + position,),
                    logprobs=logprobs,
                )
                if last:
                    step.delta.stop_matched = step.delta.stop_matched or stop_matched
                    step.delta.reasoning_closed = reasoning_closed
                steps.append(step)
        usage = {"reasoning": len(reasoning) * count, "answer": len(answer) * count}
        return [*steps, finished(**usage, choices=count, finish=finish)]

    return play
