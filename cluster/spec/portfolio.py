"""Several models in one spec: ``models:`` by name, in place of ``model:`` and ``pools:``.

Each entry has the keys of a ``model`` section and its own ``pools``; ``served_name`` is the entry's name unless it says
otherwise. ``transfer``, ``autoscaling``, ``health`` and ``slo`` hold for all models, and an entry may have its own.
What holds for the whole cluster (``gateway``, ``tenants``, ``security``, ...) is said once. Live code takes one model's
`ClusterSpec`, so a cluster of one model is a portfolio of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field, TypeAdapter

from cluster.errors import ConfigError
from cluster.spec.config import ClusterSpec, checked, problem, read_tree, spec_text
from cluster.spec.routing_settings import RouteSettings

T = TypeVar("T")
OWN_SECTIONS = ("pools", "transfer", "autoscaling", "health", "slo")
"""Sections that an entry of ``models`` may have; its other keys are those of ``model``."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
"""Of a model or a route. Names of workers begin with it."""


@dataclass(frozen=True, slots=True)
class Portfolio:
    """The models of one cluster, each as the spec of a cluster that has it alone.

    ``models`` by the name that callers ask for, in the order of the file; ``routes`` are further names, by which a
    model is chosen for each request. ``max_gpus`` is what all autoscaled pools together may take.
    """

    models: Mapping[str, ClusterSpec]
    routes: Mapping[str, RouteSettings] = field(default_factory=lambda: MappingProxyType({}))
    max_gpus: int | None = None
    shared: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Sections of the file that hold for all models, as they stand there: a model that is added takes them, too."""

    @classmethod
    def of(cls, spec: ClusterSpec) -> Portfolio:
        """A cluster of one model."""
        return cls({spec.model.served_name: spec})

    def added(self, name: str, entry: Mapping[str, Any]) -> Portfolio:
        """The same with one more model, from an entry as ``models`` has it.

        Raises:
            ConfigError: the entry is wrong, or something has its name.
        """
        source = "the new model"
        ((name, checked_entry),) = _section("models", _ENTRIES, {"models": {name: entry}}, source).items()
        spec = _model_spec(name, checked_entry, dict(self.shared), source)
        served = spec.model.served_name
        if served in self.models or served in self.routes:
            raise ConfigError(
                f"{source}: the cluster has a model or a route named {served!r}; give another served_name"
            )
        if spec.worker_prefix in {each.worker_prefix for each in self.models.values()}:
            raise ConfigError(
                f"{source}: workers of another model are named {spec.worker_prefix}...; give another name"
            )
        found = replace(self, models={**self.models, served: spec}, max_gpus=_max_gpus(self.shared))
        _check_together(found, source)
        return found

    def removed(self, name: str) -> Portfolio:
        """The same without a model.

        Raises:
            ConfigError: there is no such model, it is the last one, or a route names it.
        """
        self.model(name)
        routes = [route for route, settings in self.routes.items() if name in settings.arms]
        if routes:
            raise ConfigError(f"the route {routes[0]!r} sends requests to {name!r}; remove it from the spec first")
        if len(self.models) == 1:
            raise ConfigError(f"{name!r} is the only model; `baton down` ends the cluster")
        return replace(self, models={key: spec for key, spec in self.models.items() if key != name})

    @property
    def first(self) -> ClusterSpec:
        """The first model's: sections that hold for the whole cluster are the same in each."""
        return next(iter(self.models.values()))

    def with_gateway(self, update: Mapping[str, Any]) -> Portfolio:
        """The same with some keys of the ``gateway`` section changed."""
        return self.map_models(
            lambda _, spec: spec.model_copy(update={"gateway": spec.gateway.model_copy(update=update)})
        )

    def map_models(self, change: Callable[[str, ClusterSpec], ClusterSpec]) -> Portfolio:
        """The same with each model's spec changed."""
        return replace(self, models={name: change(name, spec) for name, spec in self.models.items()})

    def model(self, name: str | None) -> ClusterSpec:
        """The spec of one model; ``None`` stands for the only one.

        Raises:
            ConfigError: there is no such model, or there are several.
        """
        names = ", ".join(self.models)
        if name is None and len(self.models) > 1:
            raise ConfigError(f"the spec has the models {names}; name one with --model")
        if name is not None and name not in self.models:
            raise ConfigError(f"there is no model {name!r}; there are {names}")
        return self.first if name is None else self.models[name]


def load(path: Path | None = None) -> Portfolio:
    """Read and check a spec of one model or of several; without a path, the embedded ``local.yaml``.

    Raises:
        ConfigError: as for `cluster.spec.config.load`.
    """
    return parse(spec_text(path), source=str(path or "local.yaml"))


def parse(text: str, *, source: str = "spec") -> Portfolio:
    """Check a spec given as YAML text.

    Raises:
        ConfigError: as for `cluster.spec.config.parse`.

    Example:
        >>> pools = "pools: {colocated: {replicas: 1}}"
        >>> found = parse(f"models: {{fast: {{path: m, max_model_len_tokens: 64, {pools}}}}}")
        >>> [(name, spec.worker_prefix) for name, spec in found.models.items()]
        [('fast', 'fast-')]
    """
    tree = read_tree(text, source)
    if "models" not in tree:
        spec = checked(tree, source)
        own = ("model", "pools")
        return replace(Portfolio.of(spec), shared={key: value for key, value in tree.items() if key not in own})
    both = [key for key in ("model", "pools") if key in tree]
    if both:
        raise ConfigError(f"{source}: {both[0]} stands beside models; give it to the entry of the model that it is for")
    entries = _section("models", _ENTRIES, tree, source)
    routes = _section("routes", _ROUTES, tree, source)
    shared = {key: value for key, value in tree.items() if key not in ("models", "routes")}
    specs = [_model_spec(name, entry, shared, source) for name, entry in entries.items()]
    models = {spec.model.served_name: spec for spec in specs}
    if len(models) < len(specs):
        raise ConfigError(f"{source}: models: two entries have one served_name; give each its own")
    found = Portfolio(models, routes, _max_gpus(shared), shared)
    _check_together(found, source)
    return found


_ENTRIES: TypeAdapter[dict[str, dict[str, Any]]] = TypeAdapter(
    Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
)
_ROUTES: TypeAdapter[dict[str, RouteSettings]] = TypeAdapter(dict[Name, RouteSettings])


def _section(key: str, adapter: TypeAdapter[dict[str, T]], tree: dict[str, Any], source: str) -> dict[str, T]:
    """A section of named entries; none where it is left out."""
    try:
        return adapter.validate_python(tree.get(key, {}))
    except pydantic.ValidationError as error:
        places = {str(item["loc"][0]): f"{key}.{item['loc'][0]}" for item in error.errors() if item["loc"]}
        problems = "; ".join(problem(item, {"": key, **places}) for item in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def _model_spec(name: str, entry: dict[str, Any], shared: dict[str, Any], source: str) -> ClusterSpec:
    """The spec of a cluster that has this model alone."""
    sections = {key: value for key, value in entry.items() if key in OWN_SECTIONS}
    model = {key: value for key, value in entry.items() if key not in OWN_SECTIONS}
    for key, value in sections.items():
        if isinstance(value, dict) and isinstance(shared.get(key), dict):
            sections[key] = shared[key] | value
    places = {key: f"models.{name}.{key}" for key in ("pools", *sections)} | {
        "model": f"models.{name}",
        "": f"models.{name}",
    }
    tree = shared | sections | {"model": {"served_name": name} | model}
    return checked(tree, source, places).with_worker_prefix(f"{name}-")


def _max_gpus(shared: Mapping[str, Any]) -> int | None:
    scaling = shared.get("autoscaling")
    return scaling.get("max_gpus") if isinstance(scaling, dict) else None


def _check_together(portfolio: Portfolio, source: str) -> None:
    models = portfolio.models
    for name, route in portfolio.routes.items():
        if name in models:
            raise ConfigError(f"{source}: routes.{name}: a model has this name; give the route another")
        for arm in route.arms:
            if arm not in models:
                known = ", ".join(models)
                raise ConfigError(f"{source}: routes.{name}.arms: there is no model {arm!r}; models has {known}")
    pools = [pool for spec in models.values() if spec.autoscaling.enabled for _, pool in spec.pools.items()]
    gpus = sum(pool.gpus_per_worker * pool.started_replicas for pool in pools)
    if portfolio.max_gpus is not None and portfolio.max_gpus < gpus:
        raise ConfigError(
            f"{source}: autoscaling.max_gpus must be at least {gpus}, "
            "what the models' replicas and standby_replicas take"
        )
