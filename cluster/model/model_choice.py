"""The model as plan and scenario files name it: a known name, or a config.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.model.known_models import known_model
from cluster.model.model_config import read_config
from cluster.model.model_spec import ModelSpec
from cluster.spec.settings import Settings


class ModelChoice(Settings):
    """The model: a known name, a folder or file with its config.json, or its geometry by hand."""

    name: str | None = None
    """Name in ``cluster/model/models.yaml``, such as ``Qwen3-32B``."""
    config: str | None = None
    """Path of a Hugging Face ``config.json`` or its folder; wins over ``name``."""
    by_hand: dict[str, Any] | None = None
    """Geometry in place of a config: the fields of `ModelSpec`, for a model that is refused or has no config."""
    ignore_keys: list[str] = Field(default_factory=list)
    """Keys of the config that are known to change neither KV cache nor weights nor work."""
    precision: Literal["bf16", "fp8", "fp8_block", "int4", "mxfp4", "nvfp4"] | None = None
    """Precision of the linear layers; left out, what the checkpoint says."""
    kv_cache_dtype: Literal["bf16", "fp8"] | None = None
    """Type of KV blocks; left out, what the checkpoint says, else bf16."""

    @model_validator(mode="after")
    def _check(self) -> ModelChoice:
        if not self.name and not self.config and self.by_hand is None:
            raise ValueError("give name or config, or the geometry by_hand")
        return self

    @property
    def kv_dtype_bytes(self) -> float | None:
        """Bytes of one value in the KV cache; ``None`` where the checkpoint is to say."""
        return {"fp8": 1.0, "bf16": 2.0}.get(self.kv_cache_dtype or "")

    def geometry(self) -> ModelSpec:
        """The model's geometry at the precision asked.

        Raises:
            ConfigError: an unknown name, or a config.json that cannot be read.
        """
        if self.by_hand is not None:
            found = ModelSpec.from_record({"name": self.name or "model", **self.by_hand})
        elif self.config:
            found = read_config(self.config, self.name or "", tuple(self.ignore_keys))
        else:
            found = known_model(self.name or "")
        return found.with_precision(self.precision) if self.precision else found
