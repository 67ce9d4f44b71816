"""Keys of a ``config.json``: which are read, which are known to change nothing, and which are refused.

A reader marks each key that it asks for. Whatever is neither asked for nor listed as without effect is refused by
name, so that nothing that could change KV cache, weights or work is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ConfigError

Values = dict[str, Any]
"""Fields of a `ModelSpec` as far as they are read."""

WITHOUT_EFFECT: frozenset[str] = frozenset(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()))
"""Keys that change neither what a token leaves in the KV cache, nor weights worth counting, nor work."""


class ConfigReader:
    """A ``config.json`` whose keys are marked as they are read.

    Args:
        config: The mapping.
        defaults: What the model type takes where a key is absent.
        name: The model's name, for errors.
    """

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> None:
        self.config = {key: value for key, value in config.items() if value is not None}
        # A null says that there is none, which is not the same as saying nothing.
        self.defaults = {key: value for key, value in defaults.items() if key not in config}
        self.name = name
        self.kind = str(config.get("model_type") or "")
        self._read: set[str] = set()

    def get(self, *keys: str) -> Any:
        """Value of the first of these keys that is there, else the model type's default, else ``None``."""
        self._read.update(keys)
        for source in (self.config, self.defaults):
            for key in keys:
                if key in source:
                    return source[key]
        return None

    def whole(self, *keys: str) -> int:
        """The same as a whole number, 0 where there is none.

        Raises:
            ConfigError: something else stands there.
        """
        value = self.get(*keys)
        if value is None or value is False:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"model.config.{self._at(keys)}={value!r}: expected a whole number >= 0", model=self.name)
        return value

    def need(self, *keys: str) -> int:
        """The same where there has to be one.

        Raises:
            ConfigError: missing or not a whole number.
        """
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"model.config.{keys[0]}: missing or not a whole number", model=self.name)
        return value

    def names(self, *keys: str) -> list[Any]:
        """A list, one entry a layer; empty where there is none.

        Raises:
            ConfigError: something else stands there.
        """
        value = self.get(*keys)
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"model.config.{self._at(keys)}={value!r}: expected a list", model=self.name)
        return list(value)

    def skip(self, *keys: str) -> None:
        """Mark keys that this type of model holds and that say nothing here."""
        self._read.update(keys)

    def refuse(self, key: str, why: str) -> ConfigError:
        """An error that names a key and says what to do."""
        return ConfigError(f"model.config.{key}: {why}; give the geometry by hand (model.by_hand)", model=self.name)

    def check(self, ignore_keys: tuple[str, ...]) -> None:
        """Refuse what was not read.

        Raises:
            ConfigError: a key that is neither read nor known to be without effect.
        """
        left = sorted(self.config.keys() - self._read - WITHOUT_EFFECT - set(ignore_keys))
        if left:
            raise ConfigError(
                f"model.config.{left[0]}={_short(self.config[left[0]])}: not known for model type "
                f"{self.kind or 'none'!r}, and it may change KV cache, weights or work; list it under "
                "model.ignore_keys if it does not, or give the geometry by hand (model.by_hand)",
                model=self.name,
            )

    def _at(self, keys: tuple[str, ...]) -> str:
        return next((key for key in keys if key in self.config), keys[0])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
