"""What is written of the chart's models: values, schema, README, defaults and dashboard agree with one another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from scripts import generate_chart
from scripts.chart_dashboard import dashboard
from scripts.chart_readme import readme
from scripts.chart_schema import _definition, _plain, schema
from scripts.chart_values import ChartValues

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {"schema": schema(), "values": yaml.safe_load(generate_chart.values()), "readme": readme()}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{info.alias or name}"


# --- schema ---------------------------------------------------------------------------------------------------------


def walked(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from walked(item)


def test_every_reference_of_the_schema_leads_somewhere(made: dict[str, Any]) -> None:
    names = {each["$ref"] for each in walked(made["schema"]) if isinstance(each.get("$ref"), str)}
    assert names
    for name in names:
        assert name.removeprefix("#/$defs/") in made["schema"]["$defs"], name


def test_no_placeholder_and_no_title_is_left(made: dict[str, Any]) -> None:
    for each in walked(made["schema"]):
        assert "x-kubernetes" not in each
        assert not isinstance(each.get("title"), str)


@pytest.mark.parametrize(
    "path",
    [(), ("gateway",), ("head",), ("prefillWorkers",), ("model",)],
)
def test_unknown_keys_are_refused_at_every_level(made: dict[str, Any], path: tuple[str, ...]) -> None:
    tree: dict[str, Any] = {}
    inner = tree
    for key in path:
        inner = inner.setdefault(key, {})
    inner["noSuchKey"] = 1
    errors = list(jsonschema.Draft202012Validator(made["schema"]).iter_errors(tree))
    assert any("noSuchKey" in error.message for error in errors), [error.message for error in errors]


def test_the_defaults_keep_the_schema_but_for_what_has_no_default(made: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(made["schema"])
    assert {error.message for error in validator.iter_errors(made["values"])} <= {"'config' is a required property"}


@pytest.mark.parametrize(
    ("tree", "plain"),
    [
        ({"title": "Name", "type": "string"}, {"type": "string"}),
        ({"properties": {"title": {"type": "string"}}}, {"properties": {"title": {"type": "string"}}}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": ["string", "null"]}),
        (
            {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/A"}]},
            {"if": {"not": {"type": "null"}}, "then": {"$ref": "#/$defs/A"}},
        ),
        (
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]},
            {"if": {"not": {"type": "null"}}, "then": {"type": "string", "enum": ["a"]}},
        ),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ({"x-kubernetes": "io.k8s.api.core.v1.Toleration"}, {"$ref": "#/$defs/io.k8s.api.core.v1.Toleration"}),
    ],
)
def test_a_schema_is_written_so_that_mistakes_have_one_answer(tree: Any, plain: Any) -> None:
    assert _plain(tree) == plain


@pytest.mark.parametrize("keep_null", [False, True])
def test_null_stays_only_where_it_says_something(keep_null: bool) -> None:
    tree = {
        "description": "text", "type": ["string", "null"], "x-kubernetes-list-type": "map",
        "properties": {"format": {"type": ["integer", "null"], "format": "int32"}},
    }  # fmt: skip
    found = _definition(tree, keep_null=keep_null)
    assert found["type"] == (["string", "null"] if keep_null else "string")
    assert set(found) == {"type", "properties"}
    # A property may be called as a keyword is.
    assert set(found["properties"]) == {"format"}
    assert "format" not in found["properties"]["format"]


# --- values and README ----------------------------------------------------------------------------------------------


def test_values_have_every_key_but_config_and_nothing_else(made: dict[str, Any]) -> None:
    assert set(made["values"]) == set(leaves(ChartValues)) - {"config"}


def test_values_are_the_models_own_defaults(made: dict[str, Any]) -> None:
    given = {key: value for key, value in made["values"].items() if value != {}}
    again = ChartValues.model_construct(**dict[str, Any](config=None))
    for key, value in given.items():
        field = next(name for name, info in ChartValues.model_fields.items() if (info.alias or name) == key)
        own = getattr(again, field)
        if not isinstance(own, BaseModel):
            assert value == own, key


def test_each_key_of_values_has_its_comment() -> None:
    lines = generate_chart.values().splitlines()
    for index, line in enumerate(lines):
        if re.match(r"^[a-zA-Z]", line):
            assert lines[index - 1].startswith("#"), line


def test_the_readme_has_a_row_for_every_key_and_no_text_breaks_a_table(made: dict[str, Any]) -> None:
    for name in leaves(ChartValues):
        assert f"`{name}" in made["readme"] or f"## {name}" in made["readme"], name
    rows = [line for line in made["readme"].splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 4, row


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout, and cheap texts to write into it."""
    monkeypatch.setattr(generate_chart, "ROOT", tmp_path)
    for name in ("values", "readme", "group_defaults", "needed"):
        monkeypatch.setattr(generate_chart, name, lambda name=name: f"{name}\n")
    for name in ("schema", "dashboard"):
        monkeypatch.setattr(generate_chart, name, lambda name=name: {name: 1})
    (tmp_path / "helm").mkdir()
    monkeypatch.setattr(generate_chart.sys, "argv", ["generate_chart.py"])
    return tmp_path


def test_what_is_written_is_found_fresh(
    chart: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_chart.main()
    assert capsys.readouterr().out.count("wrote helm/") == 6
    generate_chart.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(generate_chart.sys, "argv", ["generate_chart.py", "--check"])
    generate_chart.main()


@pytest.mark.parametrize("spoil", ["change", "remove"])
def test_a_check_names_what_is_stale_and_writes_nothing(
    chart: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    generate_chart.main()
    path = chart / "helm" / "values.yaml"
    path.write_text("by hand\n") if spoil == "change" else path.unlink()
    monkeypatch.setattr(generate_chart.sys, "argv", ["generate_chart.py", "--check"])
    with pytest.raises(SystemExit) as stale:
        generate_chart.main()
    assert stale.value.code == "helm/values.yaml: out of date; run `make chart`"
    assert not path.exists() or path.read_text() == "by hand\n"


def test_groups_have_defaults_of_their_own_keys_alone() -> None:
    text = generate_chart.group_defaults()
    tree = json.loads(text.split("\n", 1)[1])
    assert "replicas" in tree
    assert "podAnnotations" not in tree


# --- dashboard ------------------------------------------------------------------------------------------------------


def test_panels_do_not_lie_over_one_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
        assert place["x"] + place["w"] <= 24
