"""The spec's ``routes`` section: names by which a model is chosen for each request."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.settings import Settings


class RouteSettings(Settings):
    """A name that stands for one of several models: an alias with one arm, an A/B test with more."""

    arms: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(min_length=1)
    """Share of the requests by model; shares need not add up to 1. Requests of one session all go to one model."""
