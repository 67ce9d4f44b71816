"""`baton keys`: make an API key and the entry that lets it in."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from rich.console import Console

from cluster.errors import ConfigError
from interface.api_keys import add_to_file, make_key


def keys(tenant: str, file: Path | None, *, valid_days: float | None, as_json: bool) -> None:
    """Make a key; see `baton keys --help`. The key goes to stdout alone, so that it can be piped into a file."""
    if not 0 < len(tenant) <= 256:
        raise ConfigError("tenant: expected 1 to 256 characters")
    key, entry = make_key(tenant, valid_days=valid_days)
    tree = entry.model_dump(mode="json", exclude_none=True)
    if file is not None:
        add_to_file(file, entry)
    if as_json:
        print(json.dumps({"key": key, "entry": tree}))
        return
    print(key)
    console = Console(stderr=True, highlight=False)
    if file is not None:
        console.print(f"[green]✓[/] added to {file}; the key above is shown this once")
    else:
        console.print("the key is shown this once; put this into the file of security.api_keys_file:", style="dim")
        console.print(yaml.safe_dump({"keys": [tree]}, sort_keys=False).rstrip(), markup=False)
