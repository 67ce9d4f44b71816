"""Write the chart's values, schema, README and dashboard from scripts/chart_*.py and cluster/spec/.

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
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.chart_dashboard import dashboard  # noqa: E402
from scripts.chart_pod import Pod  # noqa: E402
from scripts.chart_readme import own_fields, readme  # noqa: E402
from scripts.chart_schema import schema  # noqa: E402
from scripts.chart_types import Values  # noqa: E402
from scripts.chart_values import ChartValues  # noqa: E402
from scripts.chart_workers import Group  # noqa: E402

HEAD = """\
# Values of Baton's chart. Written by `make chart` from scripts/chart_values.py: edit that.
# `config` has no default, because a model has none: begin with a file of helm/ci/ or with `baton plan emit`.
"""
ALL_PODS = """\
# Keys of all pods. They stand here for all of them, and in head, gateway, each worker group and helmTest for the pods
# of that section: maps and lists are put together, and what is there once is the section's."""
# `config` has none, and is left out of all that is made from these.
DEFAULTS = ChartValues.model_construct(**dict[str, Any](config=None))


def values() -> str:
    """values.yaml: each key with its comment and default."""
    return HEAD + "\n" + _section(ChartValues, DEFAULTS, 0)


def _section(model: type[BaseModel], defaults: BaseModel, depth: int) -> str:
    lines: list[str] = []
    pad = "  " * depth
    fields: list[tuple[str, FieldInfo | None]] = [
        *(own_fields(model) if issubclass(model, Pod) else model.model_fields.items())
    ]
    if issubclass(model, Pod) and depth > 0:
        # They are those of the top level; a copy in each section would only hide differences.
        lines.append(f"{pad}# And the keys of all pods, `podAnnotations` and so on: at the top level.")
    elif issubclass(model, Pod):
        fields += [("", None), *Pod.model_fields.items()]
    for name, info in fields:
        if info is None:
            lines += [ALL_PODS, ""]
            continue
        key = info.alias or name
        text = " ".join((info.description or "").split())
        lines += textwrap.wrap(f"{pad}# -- {text}", 118, subsequent_indent=f"{pad}# ", break_long_words=False)
        value = getattr(defaults, name)
        if isinstance(value, Values):
            if isinstance(value, Group) and name != "prefill_workers":
                # The keys are those of prefillWorkers; a second and third copy would only hide differences.
                lines.append(f"{pad}{key}: {{}}  # keys and defaults as for prefillWorkers")
            elif all(inner is None for inner in value.model_dump().values()):
                lines.append(f"{pad}{key}: {{}}")
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
    own = Group().model_dump(by_alias=True, exclude=set(Pod.model_fields))
    return "# Written by `make chart`.\n" + json.dumps(own, indent=1) + "\n"


def needed() -> str:
    """Values that the templates cannot do without, with their defaults: by these null is refused."""
    return "# Written by `make chart`.\n" + json.dumps(_needed(ChartValues, DEFAULTS, 0), indent=1) + "\n"


def _needed(model: type[BaseModel], defaults: BaseModel, depth: int) -> dict[str, Any]:
    """Sections, and in them what is not the same when it is absent. values.yaml has a pod's keys at the top alone."""
    found: dict[str, Any] = {}
    inner = issubclass(model, Pod) and depth > 0
    for name, info in own_fields(model) if inner else model.model_fields.items():
        value = getattr(defaults, name)
        if isinstance(value, Values):  # a group's keys have their defaults in files/group-defaults.yaml
            found[info.alias or name] = {} if isinstance(value, Group) else _needed(type(value), value, depth + 1)
        elif value not in (None, "", {}, []):
            found[info.alias or name] = value
    return found


def main() -> None:
    """Write, or check."""
    wanted = {
        ROOT / "helm" / "values.yaml": values(),
        ROOT / "helm" / "values.schema.json": json.dumps(schema(), indent=1) + "\n",
        ROOT / "helm" / "README.md": readme(),
        ROOT / "helm" / "files" / "group-defaults.yaml": group_defaults(),
        ROOT / "helm" / "files" / "needed.yaml": needed(),
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
