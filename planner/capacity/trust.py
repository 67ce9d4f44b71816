"""How far a figure may be trusted: where its constants come from, and the error seen where it was checked.

Four of five held-out measured rows fell within 12 % (dense models) and 17 % (all) of TPOT
(``docs/capacity-planning.md``); bands grow where nothing was fitted. Those of kinds of GPU and shapes without a fit are
measured on Blackwell (``benchmarks/planner_new_gpus.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from planner.capacity.pools import Sized
from planner.capacity.resolve import Problem
from planner.capacity.worker_model import Load

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
ANALYTIC_EXPERTS_BAND = 0.65
"""Of mixture-of-experts models without a fit: half of the Blackwell rows ask for it, it holds 98 % of the rest."""


@dataclass(frozen=True)
class Trust:
    """Tag and band.

    Args:
        tag: ``measured``: scaled to the user's own points. ``calibrated``: constants fitted on this kind of GPU,
            within what was measured. ``extrapolated``: fitted, but the batch or the context lies beyond.
            ``analytic``: no fit on this kind of GPU, on layers with states or an indexer, or on stages and ranks.
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
    elif any(pool.worker.gpu.name not in FITTED_GPUS or not _fitted(problem, pool) for pool in pools):
        tag = Tag.ANALYTIC
    else:
        tag = Tag.CALIBRATED if inside else Tag.EXTRAPOLATED
    wide = tag is Tag.ANALYTIC and problem.model.experts > 0
    return Trust(tag, ANALYTIC_EXPERTS_BAND if wide else BANDS[tag])


def _fitted(problem: Problem, pool: Sized) -> bool:
    """The constants were fitted on such layers and such a shape."""
    model, shape = problem.model, pool.worker.shape
    return model.state is None and not model.index_layers and shape.pp == shape.dp == 1 and problem.speculation is None
