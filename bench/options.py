"""The options of `baton bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Endpoint = Annotated[str, typer.Argument(help="http://host:port (OpenAI's interface) or grpc://host:port (baton.v1).")]
Model = Annotated[str, typer.Option(help="Model to ask for; left out, the first one served.")]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", "-c", help="Closed loop: clients that each wait.", min=1)
]
Rate = Annotated[float | None, typer.Option(help="Open loop: requests per second, whatever the server does.", min=1e-6)]
Burstiness = Annotated[
    float, typer.Option(help="Open loop: squared coefficient of variation of the gaps; 1 is Poisson.", min=1e-9)
]
Requests = Annotated[int | None, typer.Option("--requests", "-n", help="Requests to send.", min=1)]
DurationS = Annotated[float | None, typer.Option(help="Stop sending after so long.", min=0)]
Isl = Annotated[int, typer.Option(help="Prompt tokens.", min=1)]
Osl = Annotated[int, typer.Option(help="Output tokens.", min=1)]
Trace = Annotated[Path | None, typer.Option(help="Lengths, and without -c also times: a trace of any known format.")]
Unit = Annotated[str, typer.Option(help="Of the trace's times, where they are numbers: s, ms, us, ns.")]
Tokenizer = Annotated[Path | None, typer.Option(help="For a trace of text: tokenizer.json or a model's folder.")]
CharsPerToken = Annotated[float | None, typer.Option(help="For a trace of text: an estimate in place of a tokenizer.")]
TraceSpeed = Annotated[float, typer.Option(help="Play the trace this many times faster.", min=1e-6)]
MaxTotalTokens = Annotated[
    int | None, typer.Option(help="Leave out rows of the trace with more tokens than this.", min=2)
]
Warmup = Annotated[int, typer.Option(help="Requests sent before, and not counted.", min=0)]
Api = Annotated[str, typer.Option(help="completions, or chat (prompts are text then).")]
Prompt = Annotated[str, typer.Option(help="ids (exact length) or text (random words).")]
TokenIds = Annotated[str, typer.Option(help="Range LOW:HIGH that prompt token ids are drawn from.")]
NaturalEnd = Annotated[
    bool, typer.Option("--natural-end", help="Let the model stop by itself, in place of exactly --osl tokens.")
]
Temperature = Annotated[float, typer.Option(min=0)]
CountIds = Annotated[
    bool, typer.Option("--count-ids", help="Count tokens by ids in each message, in place of the usage.")
]
Seed = Annotated[int, typer.Option(min=0)]
TimeoutS = Annotated[float, typer.Option(help="Of one request.", min=0.001)]
SloTtftS = Annotated[float | None, typer.Option(help="Goodput: time to first token.")]
SloTtfatS = Annotated[float | None, typer.Option(help="Goodput: time to first answer token.")]
SloItlS = Annotated[float | None, typer.Option(help="Goodput: 95th percentile of a request's gaps.")]
SloE2eS = Annotated[float | None, typer.Option(help="Goodput: time to last token.")]
Pid = Annotated[
    list[int] | None, typer.Option(help="Root of the server's processes, for CPU seconds. May be repeated.")
]
Out = Annotated[Path | None, typer.Option(help="Write the result and every request to this JSON file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of a table.")]
