"""Read a Hugging Face ``config.json`` into a `ModelSpec`: one reader per family, refusals by name for the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.model.config_keys import ConfigReader, Values
from cluster.model.model_families import FAMILIES, REFUSED, WRAPPERS
from cluster.model.model_spec import ModelSpec
from cluster.model.precision import attention_left_wide, kv_dtype_bytes_of, precision_of

_PLAIN = "llama"


def read_config(config: Path | str | Mapping[str, Any], name: str = "", ignore_keys: tuple[str, ...] = ()) -> ModelSpec:
    """Read a Hugging Face ``config.json`` (a path to it, to its folder, or its mapping).

    Args:
        config: The file, its folder, or what is in it.
        name: What to call the model; the folder's name if left out.
        ignore_keys: Keys that are known to change neither KV cache nor weights nor work.
    Raises:
        ConfigError: the file is missing, not JSON, lacks a dimension, or names a model type, a kind of layer or
            a key for which there is no model here.
    Example:
        >>> read_config({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        ...     "vocab_size": 100, "intermediate_size": 128}).head_dim
        16
    """
    if not isinstance(config, Mapping):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        try:
            loaded = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise ConfigError(f"model.config={str(config)!r}: no such file") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.config={str(config)!r}: not a readable config.json ({error})") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"model.config={str(config)!r}: expected a JSON object")
        return read_config(_with_quantisation(loaded, path), name or path.parent.name, ignore_keys)
    name = name or str(config.get("_name_or_path") or config.get("model_type") or "model")
    _refuse_known(str(config.get("model_type") or ""), name)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return _wrapped(config, text, name, ignore_keys)
    return _text(config, config.get("quantization_config"), name, ignore_keys, 0)


def _with_quantisation(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config with what ModelOpt writes beside it (``hf_quant_config.json``), where it says nothing itself."""
    beside = path.with_name("hf_quant_config.json")
    if config.get("quantization_config") or path.name != "config.json" or not beside.exists():
        return config
    try:
        quant = json.loads(beside.read_text())["quantization"]
        return {**config, "quantization_config": {"quant_method": "modelopt", **quant}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.config={str(beside)!r}: not a readable hf_quant_config.json ({error})") from error


def _refuse_known(kind: str, name: str) -> None:
    if kind in REFUSED:
        raise ConfigError(
            f"model.config.model_type={kind!r}: {REFUSED[kind]}; give the geometry by hand (model.by_hand)", model=name
        )


def _wrapped(config: Mapping[str, Any], text: Mapping[str, Any], name: str, ignore_keys: tuple[str, ...]) -> ModelSpec:
    """A language model nested under ``text_config``, with a vision tower beside it, or none."""
    outer = ConfigReader(config, {}, name)
    outer.skip("text_config", "quantization_config", "compression_config")
    quant = config.get("quantization_config") or text.get("quantization_config")
    vision = outer.get("vision_config")
    extra = _tower_params(vision, outer) if isinstance(vision, Mapping) else 0
    inner = dict(text)
    if "model_type" not in inner:
        inner["model_type"] = WRAPPERS.get(outer.kind, outer.kind)
    if "tie_word_embeddings" not in inner and outer.get("tie_word_embeddings") is not None:
        inner["tie_word_embeddings"] = outer.get("tie_word_embeddings")
    outer.skip("tie_word_embeddings", "vocab_size", "hidden_size", *ignore_keys)
    outer.check(ignore_keys)
    return _text(inner, quant, name, ignore_keys, extra)


def _tower_params(vision: Mapping[str, Any], outer: ConfigReader) -> int:
    """Weights of a vision tower: attention and MLP of each of its layers."""

    def first(*keys: str) -> int:
        return next((int(vision[key]) for key in keys if isinstance(vision.get(key), int)), 0)

    width = first("hidden_size", "embed_dim", "vt_hidden_size")
    depth = first("num_hidden_layers", "depth", "vt_num_hidden_layers")
    if not width or not depth:
        raise outer.refuse("vision_config", "a vision tower without hidden_size and num_hidden_layers or depth")
    inner = first("intermediate_size", "vt_intermediate_size") or 4 * width
    return depth * (4 * width * width + 2 * width * inner)


def _text(
    config: Mapping[str, Any], quant: Any, name: str, ignore_keys: tuple[str, ...], extra_params: int
) -> ModelSpec:
    kind = str(config.get("model_type") or "")
    _refuse_known(kind, name)
    family = FAMILIES.get(kind or _PLAIN)
    if family is None:
        raise ConfigError(
            f"model.config.model_type={kind!r}: not among the types whose cache and weights are known here "
            f"({', '.join(sorted(FAMILIES))}); give the geometry by hand (model.by_hand)",
            model=name,
        )
    reader = ConfigReader(config, family.defaults, name)
    reader.skip("quantization_config", "compression_config")
    values = _common(reader)
    family.read(reader, values)
    reader.check(ignore_keys)
    quant = quant if isinstance(quant, Mapping) else None
    precision = precision_of(quant)
    return ModelSpec(
        name=name,
        precision=precision,
        quantised_experts_only=attention_left_wide(quant, precision, bool(values.get("experts"))),
        kv_dtype_bytes=kv_dtype_bytes_of(quant),
        extra_params=extra_params,
        **values,
    )


def _common(reader: ConfigReader) -> Values:
    heads = reader.need("num_attention_heads", "n_head")
    hidden = reader.need("hidden_size", "n_embd")
    tied = reader.get("tie_word_embeddings", "tie_embedding")
    reader.skip("num_hidden_layers")
    return {
        "layers": len(reader.names("layers_block_type")) or reader.need("num_hidden_layers", "n_layer"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": reader.whole("num_key_value_heads") or heads,
        "head_dim": reader.whole("head_dim", "attention_head_dim") or max(1, hidden // max(1, heads)),
        "vocab": reader.need("vocab_size"),
        "intermediate": reader.whole("intermediate_size", "n_inner"),
        "tied_embeddings": bool(tied),
        "max_context_tokens": reader.whole("max_position_embeddings", "model_max_length") or 131072,
    }
