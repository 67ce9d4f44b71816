"""Python lets signal handlers be set in the main thread alone, and Ray makes asynchronous actors in another one."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

_PENDING_CALL = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_kept: list[object] = []
"""What C points to must not be freed, not even right after the call."""


def run_in_main_thread(call: Callable[[], None]) -> None:
    """Run ``call`` now where this is the main thread, else as soon as that thread runs Python again.

    Raises:
        RuntimeError: too many calls wait already (CPython holds 32).
    """
    if threading.current_thread() is threading.main_thread():
        call()
        return

    def pending(_: object) -> int:
        call()
        return 0

    c_call = _PENDING_CALL(pending)
    _kept.append(c_call)
    if ctypes.pythonapi.Py_AddPendingCall(c_call, None):
        raise RuntimeError("the interpreter takes no more pending calls")
