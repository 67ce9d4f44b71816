"""The model as plan and scenario files name it: a known name, or a config.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Settings
from cluster.model import ModelSpec


class ModelChoice(Settings):
    """The model: a known name, or a folder or file with its config.json."""

    name: str | None = None
    """Name in ``cluster/models.yaml``, such as ``Qwen3-32B``."""
    config: str | None = None
    """Path of a Hugging Face ``config.json`` or its folder; wins over ``name``."""
    precision: Literal["bf16", "fp8", "fp8_block", "int4", "mxfp4"] | None = None
    """Precision of the linear layers; left out, what the checkpoint says."""
    kv_cache_dtype: Literal["bf16", "fp8"] = Field("bf16")
    """Type of KV blocks."""

    @model_validator(mode="after")
    def _check(self) -> ModelChoice:
        if not self.name and not self.config:
            raise ValueError("give name or config")
        return self

    @property
    def kv_dtype_bytes(self) -> float:
        """Bytes of one value in the KV cache."""
        return 1.0 if self.kv_cache_dtype == "fp8" else 2.0

    def geometry(self) -> ModelSpec:
        """The model's geometry at the precision asked.

        Raises:
            ConfigError: an unknown name, or a config.json that cannot be read.
        """
        found = ModelSpec.from_config(self.config, self.name or "") if self.config else ModelSpec.named(self.name or "")
        return found.with_precision(self.precision) if self.precision else found
