"""Write helm/values.yaml and helm/values.schema.json from scripts/chart_values.py and cluster/config.py.

python scripts/generate_chart.py            # write
python scripts/generate_chart.py --check    # fail if what is there differs
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.chart_dashboard import dashboard  # noqa: E402
from scripts.chart_values import ChartValues, Group, Values  # noqa: E402

HEAD = """\
# Values of Baton's chart. Written by `make chart` from scripts/chart_values.py: edit that.
# `config` has no default, because a model has none: begin with a file of helm/ci/ or with `baton plan emit`.
"""


def schema() -> dict[str, Any]:
    """The JSON schema of the values, closed to unknown keys at every level."""
    tree = ChartValues.model_json_schema(by_alias=True)
    tree["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    # Set by Helm itself in a parent chart.
    tree["properties"]["global"] = {"type": "object"}
    return _plain(tree)


def _plain(tree: Any) -> Any:
    """Drop pydantic's own formats that Helm's validator does not know, and titles, which repeat the keys."""
    if isinstance(tree, dict):
        return {
            key: _plain(value)
            for key, value in tree.items()
            if not (key == "title" and isinstance(value, str)) and key != "discriminator"
        }
    if isinstance(tree, list):
        return [_plain(item) for item in tree]
    return tree


def values() -> str:
    """values.yaml: each key with its comment and default."""
    return HEAD + "\n" + _section(ChartValues, ChartValues.model_construct(config=None), 0)


def _section(model: type[BaseModel], defaults: BaseModel, depth: int) -> str:
    lines: list[str] = []
    pad = "  " * depth
    for name, info in model.model_fields.items():
        key = info.alias or name
        text = " ".join((info.description or "").split())
        lines += textwrap.wrap(f"{pad}# -- {text}", 118, subsequent_indent=f"{pad}# ", break_long_words=False)
        value = getattr(defaults, name)
        if isinstance(value, Values):
            if isinstance(value, Group) and name != "prefill_workers":
                # The keys are those of prefillWorkers; a second and third copy would only hide differences.
                lines.append(f"{pad}{key}: {{}}  # keys and defaults as for prefillWorkers")
            else:
                lines += [f"{pad}{key}:", _section(type(value), value, depth + 1).rstrip()]
        elif name == "config":
            lines.append(f"{pad}# config: {{}}")
        else:
            lines.append(f"{pad}{key}: {json.dumps(value)}")
        if depth == 0:
            lines.append("")
    return "\n".join(lines) + "\n"


def group_defaults() -> str:
    """Defaults of a worker group, for the template that merges them under each group."""
    return "# Written by `make chart`.\n" + json.dumps(Group().model_dump(by_alias=True), indent=1) + "\n"


def main() -> None:
    """Write, or check."""
    wanted = {
        ROOT / "helm" / "values.yaml": values(),
        ROOT / "helm" / "values.schema.json": json.dumps(schema(), indent=1) + "\n",
        ROOT / "helm" / "files" / "group-defaults.yaml": group_defaults(),
        ROOT / "helm" / "files" / "dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"{', '.join(str(path.relative_to(ROOT)) for path in stale)}: out of date; run `make chart`")
        return
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path])
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
