"""How the linear layers' weights are stored, as ``quantization_config`` says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from cluster.errors import ConfigError


class Precision(StrEnum):
    """How the linear layers' weights are stored. Embeddings, norms and the output head stay in bf16."""

    BF16 = "bf16"
    FP8 = "fp8"
    FP8_BLOCK = "fp8_block"
    INT4 = "int4"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"

    @property
    def weight_bytes(self) -> float:
        """Bytes per weight, scales included (block scales: one per 128x128, 16, 32 or 128 values)."""
        return {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 0.5625, "mxfp4": 0.53125, "nvfp4": 0.5625}[
            self.value
        ]

    @property
    def computes_in_fp8(self) -> bool:
        """True where fp8 tensor cores multiply these weights as they are."""
        return self in (Precision.FP8, Precision.FP8_BLOCK)

    @property
    def computes_in_fp4(self) -> bool:
        """True where fp4 tensor cores, if the GPU has any, multiply these weights as they are."""
        return self is Precision.NVFP4


def precision_of(quant: Mapping[str, Any] | None) -> Precision:
    """The precision that a ``quantization_config`` names.

    Raises:
        ConfigError: a method whose bytes and speed are not known here.
    Example:
        >>> precision_of({"quant_method": "modelopt", "quant_algo": "NVFP4"})
        <Precision.NVFP4: 'nvfp4'>
    """
    quant = quant or {}
    method = str(quant.get("quant_method", "")).lower()
    if not method:
        return Precision.BF16
    if method == "mxfp4":
        return Precision.MXFP4
    if method in ("modelopt", "modelopt_fp4"):
        algorithm = str(quant.get("quant_algo", "FP8")).upper()
        if algorithm == "NVFP4" or method == "modelopt_fp4":
            return Precision.NVFP4
        if algorithm == "FP8":
            return Precision.FP8
        raise _unknown("quant_algo", algorithm)
    if method in ("fp8", "fbgemm_fp8"):
        return Precision.FP8_BLOCK if quant.get("weight_block_size") else Precision.FP8
    if method in ("awq", "gptq"):
        bits = quant.get("bits", quant.get("w_bit", 4))
        if bits != 4:
            raise _unknown("bits", bits)
        return Precision.INT4
    if method == "compressed-tensors":
        return _of_groups(quant)
    raise _unknown("quant_method", method)


def _of_groups(quant: Mapping[str, Any]) -> Precision:
    groups = quant.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values()]
    kinds = {(int(each.get("num_bits", 16)), str(each.get("type", "")).lower()) for each in weights}
    if not kinds or kinds == {(16, "")}:
        return Precision.BF16
    if len(kinds) > 1:
        raise _unknown("config_groups", "weights of several widths")
    bits, kind = kinds.pop()
    if bits == 8 and kind != "int":
        return Precision.FP8
    if bits == 4 and kind == "float":
        return Precision.NVFP4 if weights[0].get("group_size", 16) == 16 else Precision.MXFP4
    if bits == 4:
        return Precision.INT4
    raise _unknown("config_groups.weights.num_bits", f"{bits} {kind}".strip())


def _unknown(key: str, value: object) -> ConfigError:
    return ConfigError(
        f"model.config.quantization_config.{key}={value!r}: expected fp8, modelopt (FP8 or NVFP4), mxfp4, awq, gptq or "
        "compressed-tensors with weights of one width (4 bits, or 8 bits in floating point); give the geometry by hand "
        "(model.by_hand)"
    )


_ATTENTION_PROJECTION = re.compile(
    r"(attn|attention)(\W*\*?\W*$|.*(q_proj|k_proj|v_proj|o_proj|qkv|q_a_proj|q_b_proj|kv_b_proj))"
)
"""A module's name, or a pattern of names, that covers an attention layer's projections; norms and indexers do not."""


def attention_left_wide(quant: Mapping[str, Any] | None, precision: Precision, experts: bool) -> bool:
    """True where the checkpoint keeps its attention in bf16, as its list of modules left alone says."""
    if precision is Precision.BF16:
        return False
    quant = quant or {}
    lists = (quant.get(key) for key in ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules"))
    named = [str(each) for names in lists if isinstance(names, (list, tuple)) for each in names]
    if any(_ATTENTION_PROJECTION.search(each) for each in named):
        return True
    return precision is Precision.MXFP4 or (experts and precision is Precision.INT4)


def kv_dtype_bytes_of(quant: Mapping[str, Any] | None) -> float:
    """Bytes of one KV value as the checkpoint asks for them: 1 where it carries fp8 scales for the KV cache, else 2."""
    quant = quant or {}
    scheme = quant.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and int(scheme.get("num_bits", 16)) == 8:
        return 1.0
    return 1.0 if str(quant.get("kv_cache_quant_algo", "")).upper() == "FP8" else 2.0
