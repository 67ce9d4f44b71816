from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.model.model_path import cache_folder, check, expand


def test_home_and_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHTS", "/weights")
    monkeypatch.delenv("BATON_CACHE", raising=False)
    assert expand("~/m") == str(tmp_path / "m")
    assert expand("${WEIGHTS}/m") == "/weights/m"
    assert cache_folder() == tmp_path / ".cache" / "baton"
    monkeypatch.setenv("BATON_CACHE", "/cache")
    assert expand("${BATON_CACHE}/m") == "/cache/m"


def test_a_folder_without_a_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert check(str(tmp_path)) == tmp_path
