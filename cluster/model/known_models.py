"""Models that this package knows by name (``cluster/model/models.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ConfigError
from cluster.model.model_config import read_config
from cluster.model.model_spec import ModelSpec

_PRESETS = Path(__file__).parent / "models.yaml"


@cache
def known_models() -> Mapping[str, Mapping[str, Any]]:
    """Configs of the models by name: the fields that matter, as published."""
    loaded: Mapping[str, Mapping[str, Any]] = yaml.safe_load(_PRESETS.read_text())
    return loaded


def known_model(name: str) -> ModelSpec:
    """A model by name; an owner before it (``meta-llama/``) and upper case do not count.

    Raises:
        ConfigError: unknown name; the text lists the known ones.
    """
    presets = known_models()
    wanted = name.rsplit("/", 1)[-1].lower()
    for known, config in presets.items():
        if known.lower() == wanted:
            return read_config(config, known)
    raise ConfigError(
        f"model={name!r}: unknown; give model.config (a config.json) or one of {', '.join(sorted(presets))}"
    )
