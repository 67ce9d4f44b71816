"""A folder for Ray's sockets, whose paths end at 107 bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder directly below /tmp, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bk", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)
