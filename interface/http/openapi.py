"""The OpenAPI document of the HTTP interface. `scripts/generate_openapi.py` writes it by what the readers take."""

from __future__ import annotations

import json
from pathlib import Path

DOCUMENT = Path(__file__).with_name("openapi.json")


def document(version: str) -> bytes:
    """The document, with the server's version."""
    tree = json.loads(DOCUMENT.read_text())
    tree["info"]["version"] = version
    return json.dumps(tree, separators=(",", ":")).encode()
