"""Strategies by the names under which requests ask for them."""

from __future__ import annotations

from collections.abc import Callable

from cluster.errors import InvalidRequest
from orchestrator.policy.thinking.state import Settings, Strategy

Factory = Callable[[Settings], Strategy]
STRATEGIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Offer what a function makes under this name."""

    def add(factory: Factory) -> Factory:
        assert name not in STRATEGIES, name
        STRATEGIES[name] = factory
        return factory

    return add


def option(settings: Settings, name: str, allowed: tuple[str, ...]) -> str:
    """One of a strategy's own options; the first allowed value unless given.

    Raises:
        InvalidRequest: it is another value.
    """
    value = settings.options.get(name, allowed[0])
    if value not in allowed:
        field = f"inference_scaling.options.{name}"
        raise InvalidRequest(f"{field}={value[:64]!r}: expected {' or '.join(allowed)}", field=field)
    return value


def check_options(settings: Settings, *names: str) -> None:
    """Refuse options that a strategy does not have.

    Raises:
        InvalidRequest: there is one.
    """
    for name in settings.options:
        if name not in names:
            have = f"it has {', '.join(names)}" if names else "it has none"
            field = "inference_scaling.options"
            raise InvalidRequest(f"{field}: this strategy has no option {name[:64]!r}; {have}", field=field)
