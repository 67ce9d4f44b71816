"""Where a model's folder is, and whether it can be served."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cluster.errors import ConfigError


def cache_folder() -> Path:
    """Folder for what is made once and kept: ``$BATON_CACHE``, else ``~/.cache/baton``."""
    return Path(os.environ.get("BATON_CACHE") or Path.home() / ".cache" / "baton")


def expand(path: str) -> str:
    """Fill in ``~`` and environment variables; ``BATON_CACHE`` has a default."""
    text = path.replace("${BATON_CACHE}", str(cache_folder()))
    return str(Path(os.path.expandvars(text)).expanduser())


def check(path: str) -> Path:
    """The expanded folder, if it looks like a model.

    Raises:
        ConfigError: there is no config.json; the text says how to get the demo model.
    """
    folder = Path(expand(path))
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.path={path}: no config.json in {folder}; expected a Hugging Face model folder "
            "(`make model` prepares the demo's)"
        )
    return folder


def uses_latent_attention(folder: str) -> bool:
    """Whether the model in a folder has multi-head latent attention (MLA); False where that cannot be read."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(config.get("text_config", config).get("kv_lora_rank"))
