"""What a canary asks, and how far two answers to it are apart. Pure.

Prompts are fixed draws of token ids, so that answers of all workers, of all times and of a reference can be compared.
Answers are compared by log-probabilities, as long as both said the same tokens: where two tokens are nearly as likely,
rounding may pick either, and neither is wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

OUTPUT_TOKENS = 4
"""One from prefill, three from decode steps."""
BRANCH_OUTPUT_TOKENS = 2
BRANCH_TAIL_TOKENS = 5
TOP_LOGPROBS = 5
LONG_TOKENS = 256
LONG_MIN_BLOCKS = 4
LONG_TAIL_TOKENS = 7

TOLERANCE_NAT = {"float32": 0.01, "float16": 0.25, "bfloat16": 1.0}
"""Log-probabilities of two right answers differ by less: measured rounding and a margin (docs/lab-notes.md)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question. With ``prefix_tokens``, so many of its tokens are the first ones of prompt ``prefix_of``.

    Asked after that prompt under the same cache salt, it reads its first blocks from the cache.
    """

    name: str
    token_ids: tuple[int, ...]
    max_tokens: int = OUTPUT_TOKENS
    prefix_of: str = ""
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """One output token and the log-probabilities of the most likely ones, its own included."""

    chosen: int
    logprobs: tuple[tuple[int, float], ...]


Answer = tuple[Position, ...]
Answers = Mapping[str, Answer]
"""By name of the prompt."""


def prompts(vocab_size: int, block_size_tokens: int, max_model_len_tokens: int) -> tuple[Prompt, ...]:
    """The questions for engines of this shape, the long one last but for its branches.

    Lengths lie about block boundaries, since that is where tables, masks and transfers go wrong. Attention does not
    mind the order of whole blocks (K carries its position), so blocks of one request that were swapped change nothing
    in it; they are wrong for any request that reads a prefix of them. Hence the branches of the long prompt: one
    for each number of its whole blocks, with another tail.

    Example:
        >>> [len(prompt.token_ids) for prompt in prompts(181, 32, 2048)]
        [31, 32, 33, 64, 263, 37, 69, 101, 133, 165, 197, 229, 261]
        >>> prompts(181, 32, 2048)[-1].name
        '263/256'
    """
    size = block_size_tokens
    blocks = max(LONG_MIN_BLOCKS, LONG_TOKENS // size)
    lengths = {max(1, size - 1), size, size + 1, 2 * size, blocks * size + LONG_TAIL_TOKENS}
    most = max_model_len_tokens - OUTPUT_TOKENS
    plain = [Prompt(str(length), _draw(str(length), length, vocab_size)) for length in sorted(lengths) if length < most]
    if not plain:
        return (Prompt("1", _draw("1", 1, vocab_size)),)
    long = plain[-1]
    branches = []
    for end in range(size, len(long.token_ids), size):
        name = f"{long.name}/{end}"
        tail = _draw(name, BRANCH_TAIL_TOKENS, vocab_size)
        # Another first token than the long prompt's, or it would be its prefix still.
        if end < len(long.token_ids) and tail[0] == long.token_ids[end]:
            tail = (*tail[1:], tail[0])
        branches.append(Prompt(name, (*long.token_ids[:end], *tail), BRANCH_OUTPUT_TOKENS, long.name, end))
    return (*plain, *branches)


def _draw(seed: str, count: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids from the middle of the vocabulary: special tokens are at its ends."""
    generator = random.Random(f"baton canary {seed}")
    low, high = (16, vocab_size * 3 // 4) if vocab_size >= 64 else (0, vocab_size)
    return tuple(generator.randrange(low, high) for _ in range(count))


def tolerance_nat(dtype: str, kv_cache_dtype: str = "auto", quantization: str | None = None) -> float:
    """How far right answers may be apart for weights and KV of these types.

    fp8 weights and KV round more coarsely than anything measured here; they get twice what bfloat16 gets.
    """
    coarse = kv_cache_dtype != "auto" or quantization is not None
    return 2 * TOLERANCE_NAT["bfloat16"] if coarse else TOLERANCE_NAT[dtype]


def deviation_nat(answer: Answer, expected: Answer) -> float:
    """Root mean square of how far log-probabilities are apart, up to where the tokens part; inf where one is no number.

    The mean of the squares, since a single unlikely token's rounding is large and random, and what a fault does to an
    answer is large all over it. A token in one list alone is less likely in the other than all that are listed there.

    Example:
        >>> one = (Position(7, ((7, -0.1), (3, -2.5))),)
        >>> two = (Position(7, ((7, -0.2), (3, -2.1))),)
        >>> deviation_nat(one, one), round(deviation_nat(one, two), 3)
        (0.0, 0.292)
    """
    squares: list[float] = []
    for mine, theirs in zip(answer, expected, strict=False):
        ours, others = dict(mine.logprobs), dict(theirs.logprobs)
        if not ours or not others or not all(map(math.isfinite, (*ours.values(), *others.values()))):
            return math.inf
        squares += [(ours[token] - others[token]) ** 2 for token in ours.keys() & others.keys()]
        for listed, unlisted in ((ours, others), (others, ours)):
            least = min(unlisted.values())
            squares += [max(0.0, listed[token] - least) ** 2 for token in listed.keys() - unlisted.keys()]
        if mine.chosen != theirs.chosen:
            break
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def farthest(answers: Answers, expected: Answers) -> tuple[float, str]:
    """Largest deviation over the prompts that both answered, and the prompt; (0, "") where there is none."""
    rows = [(deviation_nat(answers[name], expected[name]), name) for name in answers if name in expected]
    return max(rows, default=(0.0, ""))
