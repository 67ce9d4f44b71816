from __future__ import annotations

import re

import cluster.errors
from cluster.errors import ServingError, WorkerDied


def leaves(kind: type[ServingError]) -> set[type[ServingError]]:
    return {kind}.union(*(leaves(below) for below in kind.__subclasses__()))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", cluster.errors.__doc__ or ""))
    # Those of one client alone, such as the Kubernetes provisioner's, stand beside it.
    here = {kind.__name__ for kind in leaves(ServingError) if kind.__module__ == cluster.errors.__name__}
    assert drawn == here - {"ServingError"}


def test_ids_are_reported_after_the_message() -> None:
    error = WorkerDied("gone", worker_id="d0", request_id="r")
    assert str(error) == "gone (worker_id=d0, request_id=r)"
    assert (error.message, str(ServingError("plain"))) == ("gone", "plain")
