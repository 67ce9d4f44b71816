"""NIXL's progress thread, and how to let it sleep."""

from __future__ import annotations

import os
from typing import Any

PROGRESS_DELAY_ENV = "BATON_NIXL_PROGRESS_DELAY_US"
"""Microseconds that NIXL's progress thread may sleep; unset, it spins."""
CPU_PROGRESS_DELAY_US = 50_000
"""For CPU engines. An event of UCX ends the sleep, so it bounds no latency; it is what is left to do when idle."""


def let_progress_thread_sleep() -> None:
    """Have agents made from here on wait for UCX's events in place of spinning, where `PROGRESS_DELAY_ENV` is set.

    NIXL's Python API fixes the delay at 0, and the thread then takes half a core of an idle engine (measured with
    nixl 1.5.1: 55 % idle; with 1,000 us 2 %, with 50,000 us 1 %, and reads as fast). The C++ agent takes the
    value; only the way is shut.
    """
    delay_us = int(os.environ.get(PROGRESS_DELAY_ENV, "0"))
    if not delay_us:
        return
    from nixl._api import nixlBind

    make_agent = nixlBind.nixlAgent
    if getattr(make_agent, "baton_delay", False):
        return

    def make_patient_agent(name: str, config: Any) -> Any:
        config.pthrDelay = delay_us
        return make_agent(name, config)

    make_patient_agent.baton_delay = True  # type: ignore[attr-defined]
    nixlBind.nixlAgent = make_patient_agent
