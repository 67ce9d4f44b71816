"""Weights to start training from: a circuit that finds a step by its label.

Left to itself a model of this size averages over all steps instead, for longer than two cores can train it (see
docs/lab-notes.md). So two kinds of heads are set by hand, and training goes on from there:

* Layer 0, heads 0 to 2: each token gathers the one, two and three tokens before it. A label thus knows its operand and
  its operator. Queries and keys are constants, turned against each other by the rotary angle of the distance.
* Layer 1, heads 0 and 1: a label of the trace attends to the same label of the prompt, distinguished from itself by the
  digit before it, and takes over what that one gathered. Head 0 asks for the token at its own place, head 1 for the
  one before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from models.problems import LABELS
from models.tokenizer import VOCABULARY

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

HEAD_DIM = 64
IDENTITY_DIM = 30
"""Width of a token's identity: what fits the rotary pairs that turn slowly, less one pair for the digit flag."""
SHORT_DIM = 12
"""Width in which operators, digits and letters are distinguished."""
CONSTANT = 0
IDENTITY = slice(1, 31)
DIGIT = 31
BEFORE = slice(32, 62)
DIGIT_BEFORE = 62
TWO_BEFORE = slice(63, 75)
THREE_BEFORE = slice(75, 87)
FOUND = slice(87, 123)
"""Places of the residual stream: a constant, the token, whether it is a digit, the same of the token before, the two
before that, and what a lookup found (operand, operator as a sign, operator as a letter)."""
FAST_PAIRS = range(8)
SLOW_PAIRS = range(16, 31)
FLAG_PAIR = 31
GATHER_LOGIT = 24.0
"""By how much a gathering head prefers its distance to those beside it."""
MATCH_LOGIT = 18.0
"""Attention logit of equal labels."""
FLAG_LOGIT = 10.0
"""Attention logit of a digit before the label."""


def plant_lookup(model: LlamaForCausalLM) -> None:
    """Set the embeddings and the heads of layers 0 and 1 as above; the rest keeps its random start. In place."""
    config = model.config
    theta = config.rope_parameters["rope_theta"]
    angles = [theta ** (-2 * pair / HEAD_DIM) for pair in range(HEAD_DIM // 2)]
    with torch.no_grad():
        _embed(model.model.embed_tokens.weight)
        scale = math.sqrt(config.hidden_size / _square(model.model.embed_tokens.weight))
        _plant_gather(model.model.layers[0].self_attn, angles, scale)
        # Layer 1 reads the stream after the gathering, which adds four parts of about an identity's size in all.
        identity = IDENTITY_DIM * 0.01
        gathered = _square(model.model.embed_tokens.weight) + identity * (1 + 2 * SHORT_DIM / IDENTITY_DIM)
        _plant_match(model.model.layers[1].self_attn, math.sqrt(config.hidden_size / gathered))


def _square(embeddings: torch.Tensor) -> float:
    return float(embeddings.square().sum(-1).mean())


def _embed(weight: torch.Tensor) -> None:
    """A constant, an identity of 0.1 a place, and the digit flag."""
    weight.mul_(0.2)
    identities = torch.randn(weight.shape[0], IDENTITY_DIM)
    first = VOCABULARY[LABELS[0]]
    labels = identities[first : first + len(LABELS)].clone()
    # Labels are spread apart, so that none is taken for another.
    with torch.enable_grad():
        labels.requires_grad_()
        spread = torch.optim.Adam([labels], lr=0.02)
        for _ in range(300):
            unit = torch.nn.functional.normalize(labels, dim=-1)
            loss = (unit @ unit.T).fill_diagonal_(0).pow(6).sum()
            spread.zero_grad()
            loss.backward()
            spread.step()
    identities[first : first + len(LABELS)] = labels.detach()
    unit = torch.nn.functional.normalize(identities, dim=-1)
    weight[:, IDENTITY] = unit * 0.1 * math.sqrt(IDENTITY_DIM)
    weight[:, CONSTANT] = 0.3
    digits = [VOCABULARY[digit] for digit in "0123456789"]
    weight[digits, DIGIT] = 0.3


def _plant_gather(attention: torch.nn.Module, angles: list[float], scale: float) -> None:
    """Heads 0, 1, 2 attend to the token 1, 2, 3 places before; both key heads are the same constant."""
    constant = 0.3 * scale
    closest = sum(1 - math.cos(angles[pair]) for pair in FAST_PAIRS)
    amplitude = math.sqrt(GATHER_LOGIT * math.sqrt(HEAD_DIM) / closest) / constant
    query, key, value, output = (getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    half = HEAD_DIM // 2
    for head in range(2):
        rows = key[head * HEAD_DIM : (head + 1) * HEAD_DIM]
        rows.zero_()
        for pair in FAST_PAIRS:
            rows[pair, CONSTANT] = amplitude
        block = value[head * HEAD_DIM : (head + 1) * HEAD_DIM]
        block[: IDENTITY_DIM + 1].zero_()
        block[:IDENTITY_DIM, IDENTITY] = torch.eye(IDENTITY_DIM)
        block[IDENTITY_DIM, DIGIT] = 1.0
    short = torch.randn(SHORT_DIM, IDENTITY_DIM) / math.sqrt(IDENTITY_DIM)
    output[IDENTITY].zero_()
    for head, (distance, place) in enumerate(((1, BEFORE), (2, TWO_BEFORE), (3, THREE_BEFORE))):
        rows = query[head * HEAD_DIM : (head + 1) * HEAD_DIM]
        rows.zero_()
        # A key d places before stands turned back by d angles; the query is turned back as far beforehand.
        for pair in FAST_PAIRS:
            rows[pair, CONSTANT] = amplitude * math.cos(-angles[pair] * distance)
            rows[pair + half, CONSTANT] = amplitude * math.sin(-angles[pair] * distance)
        columns = output[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]
        columns.zero_()
        if place == BEFORE:
            columns[place, :IDENTITY_DIM] = torch.eye(IDENTITY_DIM) / scale
            columns[DIGIT_BEFORE, IDENTITY_DIM] = 1 / scale
        else:
            columns[place, :IDENTITY_DIM] = short / scale


def _plant_match(attention: torch.nn.Module, scale: float) -> None:
    """Heads 0 and 1 share key head 0: the identity on slow pairs, and the flag of a digit before on the slowest."""
    query, key, value, output = (getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    half = HEAD_DIM // 2
    slow = [*SLOW_PAIRS, *(pair + half for pair in SLOW_PAIRS)]
    square = IDENTITY_DIM * (0.1 * scale) ** 2
    match = math.sqrt(MATCH_LOGIT * math.sqrt(HEAD_DIM) / square)
    flag = math.sqrt(FLAG_LOGIT * math.sqrt(HEAD_DIM) / (0.3 * scale) ** 2)
    rows = key[:HEAD_DIM]
    rows.zero_()
    rows[slow, IDENTITY] = match * torch.eye(IDENTITY_DIM)
    rows[FLAG_PAIR, DIGIT_BEFORE] = flag
    for head, place in enumerate((IDENTITY, BEFORE)):
        rows = query[head * HEAD_DIM : (head + 1) * HEAD_DIM]
        rows.zero_()
        rows[slow, place] = match * torch.eye(IDENTITY_DIM)
        rows[FLAG_PAIR, CONSTANT] = flag
    found = FOUND.stop - FOUND.start
    block = value[:HEAD_DIM]
    block[:found].zero_()
    block[:SHORT_DIM, BEFORE] = torch.randn(SHORT_DIM, IDENTITY_DIM) / math.sqrt(IDENTITY_DIM)
    block[SHORT_DIM : 2 * SHORT_DIM, TWO_BEFORE] = torch.eye(SHORT_DIM)
    block[2 * SHORT_DIM : found, THREE_BEFORE] = torch.eye(SHORT_DIM)
    for head in range(2):
        columns = output[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]
        columns.zero_()
        columns[FOUND, :found] = torch.eye(found) / scale
