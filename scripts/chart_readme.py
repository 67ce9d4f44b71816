"""helm/README.md: every value with its default and what it is, from the models."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.spec.config import ClusterSpec
from scripts.chart_pod import Pod
from scripts.chart_schema import OLDEST
from scripts.chart_values import ChartValues
from scripts.chart_workers import ExtraGroup, Group

HEAD = f"""\
# Values of Baton's chart

Written by `make chart` from `scripts/chart_values.py` and `cluster/spec/`: edit those. How to install, size,
secure and upgrade is in [docs/kubernetes.md](../docs/kubernetes.md). Only `config` and where the model comes from have
no default; `helm/ci/` has values for four clusters. Unknown keys are refused, and so is null where it says nothing:
leave a key out to have its default. Objects of Kubernetes' own forms (`tolerations`, `affinity`, `extraVolumes`...) may
have the fields that Kubernetes {OLDEST} knows, so that every newer version takes them, too.
"""
PODS = """\
These keys stand at the top level for all pods, and in `head`, `gateway`, `prefillWorkers`, `decodeWorkers`,
`colocatedWorkers`, each of `extraWorkerGroups`, and `helmTest` for the pods of that section. Maps and lists of both are
put together; of one name (an environment variable, a volume, a container, a mount's path) the section's counts, and so
does its value where there can be just one. The pod of `helm test` takes no containers, hooks, probes, volumes, mounts
or `hostNetwork` of the top level, since it must end by itself.
"""
ROW = "| `{}` | {} | {} |"


def readme() -> str:
    """The page."""
    lines = [HEAD, "## General", "", *_table(_plain_rows(ChartValues))]
    lines += ["", "## Keys of all pods", "", PODS, *_table(_rows(Pod, ""))]
    for name, info in own_fields(ChartValues):
        key = info.alias or name
        section = _model(info.annotation)
        if section is None or section is ClusterSpec or (section is Group and name != "prefill_workers"):
            continue
        text = _text(info)
        if section is Group:
            text = "Groups of workers; `decodeWorkers` and `colocatedWorkers` have the same keys. " + (
                Group.__doc__ or ""
            )
        more = " And the keys of all pods." if issubclass(section, Pod) else ""
        lines += ["", f"## {key}", "", f"{text}{more}", "", *_table(_rows(section, f"{key}.", own=True))]
    lines += ["", "## extraWorkerGroups", "", _text(ChartValues.model_fields["extra_worker_groups"]), ""]
    lines += _table(ROW.format(f"extraWorkerGroups[].{name}", "needed", _text(info)) for name, info in
                    own_fields(ExtraGroup))  # fmt: skip
    lines += ["", "## config", "", _text(ChartValues.model_fields["config"]), ""]
    lines += _table(_rows(ClusterSpec, "config."))
    return "\n".join(lines) + "\n"


def own_fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Fields that a model has itself, without those it has as a pod or as a group."""
    inherited: set[str] = set()
    for base in model.__mro__[1:]:
        if issubclass(base, BaseModel):
            inherited |= set(base.model_fields)
    return [(name, info) for name, info in model.model_fields.items() if name not in inherited]


def _plain_rows(model: type[BaseModel]) -> Iterator[str]:
    for name, info in own_fields(model):
        if _model(info.annotation) is None and name != "extra_worker_groups":
            yield ROW.format(info.alias or name, _default(info), _text(info))


def _rows(model: type[BaseModel], prefix: str, *, own: bool = False) -> Iterator[str]:
    for name, info in own_fields(model) if own else model.model_fields.items():
        key = f"{prefix}{info.alias or name}"
        inner = _model(info.annotation)
        if inner is None:
            yield ROW.format(key, _default(info), _text(info))
        else:
            needed = " Needed." if info.is_required() else ""
            yield ROW.format(key, "", _text(info) + needed)
            yield from _rows(inner, f"{key}.")


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, if it is one."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation, *more) = [option for option in get_args(annotation) if option is not type(None)]
        if more:
            return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "needed"
    value = info.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    return f"`{json.dumps(value, default=str)}`"


def _text(info: FieldInfo) -> str:
    return " ".join((info.description or "").replace("``", "`").split()).replace("|", "\\|")


def _table(rows: Iterator[str] | list[str]) -> list[str]:
    return ["| key | default | what |", "|---|---|---|", *rows]
