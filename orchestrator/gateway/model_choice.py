"""Which of a gateway's models a request gets: the one that it names, or one that its route chooses."""

from __future__ import annotations

from collections.abc import Mapping, Set

from prometheus_client import Counter

from baton.v1 import inference_pb2 as pb
from cluster.errors import ModelNotFound
from cluster.spec.routing_settings import RouteSettings
from orchestrator.gateway.model_serving import ModelServing
from orchestrator.policy.model_routing import WeightedArms


class ModelChoice:
    """Owns how far each route is; a request without a model gets the first one.

    Args:
        models: Those served, by name; there is at least one.
        routes: Names that stand for several.
        routed: Counts requests by route and model.
        leaving: Models that get no new requests, as they are being removed.
    """

    def __init__(
        self,
        models: Mapping[str, ModelServing],
        routes: Mapping[str, RouteSettings],
        routed: Counter,
        leaving: Set[str] = frozenset(),
    ) -> None:
        self._models = models
        self._leaving = leaving
        self._routes = {name: WeightedArms(route.arms) for name, route in routes.items()}
        self._arms = {name: tuple(route.arms) for name, route in routes.items()}
        self._routed = routed

    def choose(self, request: pb.GenerateRequest) -> ModelServing:
        """The model that answers a request; a route counts it.

        Raises:
            ModelNotFound: nothing has this name, or the model is being removed.
        """
        route = self._routes.get(request.model)
        if route is None:
            model = self.find(request.model)
            if model.front.name in self._leaving:
                raise ModelNotFound(f"the model {model.front.name!r} is being removed; ask for another")
            return model
        name = route.choose(request.session)
        self._routed.labels(request.model, name).inc()
        return self._models[name]

    def find(self, name: str) -> ModelServing:
        """The model of this name; the first one for no name, and for a route its first.

        Raises:
            ModelNotFound: nothing has this name.
        """
        if name in self._arms:
            name = self._arms[name][0]
        found = self._models.get(name) if name else self._first()
        if found is None:
            known = ", ".join(repr(each) for each in (*self._models, *self._routes))
            raise ModelNotFound(f"no model {name[:256]!r} here; this cluster serves {known}")
        return found

    def _first(self) -> ModelServing:
        stay = (model for name, model in self._models.items() if name not in self._leaving)
        return next(stay, next(iter(self._models.values())))

    def models(self) -> list[pb.Model]:
        """All names that a request may have. A route can what all of its models can."""
        found = {name: _described(name, model) for name, model in self._models.items() if name not in self._leaving}
        for name, arms in self._arms.items():
            of = [found[arm] for arm in arms]
            found[name] = pb.Model(
                name=name,
                max_model_len_tokens=min(model.max_model_len_tokens for model in of),
                reasoning=all(model.reasoning for model in of),
                tools=all(model.tools for model in of),
            )
        return list(found.values())


def _described(name: str, model: ModelServing) -> pb.Model:
    front = model.front
    return pb.Model(
        name=name,
        max_model_len_tokens=front.max_model_len_tokens,
        reasoning=front.markers is not None,
        tools=front.calls is not None,
    )
