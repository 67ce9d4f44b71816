"""How far a figure may be trusted: where its constants come from, and the error seen where it was checked.

Four of five held-out measured rows fell within 12 % (dense models) and 17 % (all) of TPOT
(``docs/capacity-planning.md``); bands grow where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.capacity.pools import Sized
from orchestrator.capacity.resolve import Problem
from orchestrator.capacity.worker_model import Load

FITTED_GPUS = ("H100-SXM", "H200-SXM")
FITTED_TP = 8
FITTED_BATCH = 512
FITTED_CONTEXT_TOKENS = 9216
"""Longest input plus output of the rows that the constants were fitted on."""


class Tag(StrEnum):
    """Where a figure comes from."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    ANALYTIC = "analytic"
    EXTRAPOLATED = "extrapolated"


BANDS = {Tag.MEASURED: 0.10, Tag.CALIBRATED: 0.15, Tag.EXTRAPOLATED: 0.25, Tag.ANALYTIC: 0.35}


@dataclass(frozen=True)
class Trust:
    """Tag and band.

    Args:
        tag: ``measured``: scaled to the user's own points. ``calibrated``: constants fitted on this kind of GPU,
            within what was measured. ``extrapolated``: fitted, but the batch or the context lies beyond.
            ``analytic``: no fit on this kind of GPU.
        band: Relative error to expect of times and, through them, of cost.
    """

    tag: Tag
    band: float


def trust_of(problem: Problem, pools: Sequence[Sized], load: Load) -> Trust:
    """The tag of a fleet at a load."""
    inside = all(pool.worker.shape.gpus <= FITTED_TP for pool in pools) and load.batch_size <= FITTED_BATCH
    inside = inside and pools[-1].worker.context <= FITTED_CONTEXT_TOKENS
    if problem.spec.engine.scales.source:
        tag = Tag.MEASURED if inside else Tag.EXTRAPOLATED
    elif any(pool.worker.gpu.name not in FITTED_GPUS for pool in pools):
        tag = Tag.ANALYTIC
    else:
        tag = Tag.CALIBRATED if inside else Tag.EXTRAPOLATED
    return Trust(tag, BANDS[tag])
