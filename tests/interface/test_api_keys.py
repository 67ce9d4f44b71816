from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.errors import ConfigError, Unauthenticated
from interface import api_keys
from interface.api_keys import ApiKeys, Caller, add_to_file, make_key, read_key_file
from interface.cli.main import app


def test_a_key_lets_its_tenant_in_and_is_kept_as_a_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    key, entry = make_key("acme")
    other, other_entry = make_key("other")
    add_to_file(path, entry)
    add_to_file(path, other_entry)
    keys = ApiKeys(path)
    assert keys.check(key) == Caller("acme", entry.id)
    assert keys.check(other) == Caller("other", other_entry.id)
    text = path.read_text()
    assert key not in text
    assert key.rsplit("-", 1)[1] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("change", ["", "x", "last", "case", "id", "\udcff", "no prefix"])
def test_any_other_key_is_refused_with_the_same_words(tmp_path: Path, change: str) -> None:
    path = tmp_path / "keys.yaml"
    key, entry = make_key("acme")
    add_to_file(path, entry)
    wrong = {
        "last": key[:-1] + ("a" if key[-1] != "a" else "b"),
        "case": key.swapcase(),
        "id": key.replace(entry.id, "00000000"),
        "no prefix": key.removeprefix("baton-"),
    }.get(change, change)
    with pytest.raises(Unauthenticated) as refused:
        ApiKeys(path).check(wrong)
    assert str(refused.value) == "the API key is not valid"


def test_an_unknown_id_costs_the_same_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.yaml"
    key, entry = make_key("acme")
    add_to_file(path, entry)
    keys = ApiKeys(path)
    compared: list[int] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(len(left) + len(right))
        return left == right

    monkeypatch.setattr(api_keys.hmac, "compare_digest", compare)
    for wrong in (key.replace(entry.id, "00000000"), key[:-2] + "__", "junk"):
        with pytest.raises(Unauthenticated):
            keys.check(wrong)
    assert compared == [64, 64, 64]


def test_keys_expire(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    past, past_entry = make_key("acme", valid_days=1, now=datetime.now(UTC) - timedelta(days=2))
    good, good_entry = make_key("acme", valid_days=1)
    add_to_file(path, past_entry)
    add_to_file(path, good_entry)
    keys = ApiKeys(path)
    assert keys.check(good).tenant == "acme"
    with pytest.raises(Unauthenticated, match="expired"):
        keys.check(past)


def test_a_changed_file_counts_at_once_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "RELOAD_EVERY_S", 0.0)
    path = tmp_path / "keys.yaml"
    key, entry = make_key("acme")
    add_to_file(path, entry)
    keys = ApiKeys(path)
    later, later_entry = make_key("late")
    add_to_file(path, later_entry)
    assert keys.check(later).tenant == "late"
    path.write_text("keys: [not, a, key]")
    assert keys.check(key).tenant == "acme"
    path.unlink()
    assert keys.check(key).tenant == "acme"
    add_to_file(path, later_entry)
    assert keys.check(later).tenant == "late"
    with pytest.raises(Unauthenticated):  # removed from the file
        keys.check(key)


@pytest.mark.parametrize(
    "text", ["keys: [s3cret]", "s3cret: [", "keys: [{id: s3cret, tenant: a, sha256: b}]", "[s3cret]"]
)
def test_errors_of_the_file_quote_nothing_of_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_key_file(path)
    assert "s3cret" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_the_command_prints_the_key_once_and_adds_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    result = CliRunner().invoke(app, ["keys", "acme", "-f", str(path), "--valid-days", "30"])
    assert result.exit_code == 0, result.output
    key = result.stdout.strip().splitlines()[0]
    assert ApiKeys(path).check(key).tenant == "acme"
    assert read_key_file(path).keys[0].expires is not None
    shown = json.loads(CliRunner().invoke(app, ["keys", "acme", "--json"]).stdout)
    add_to_file(path, api_keys.KeyEntry.model_validate(shown["entry"]))
    assert ApiKeys(path).check(shown["key"]).tenant == "acme"
