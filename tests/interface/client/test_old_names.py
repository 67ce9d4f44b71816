"""The client's old names still work for one version, and warn."""

import importlib
import sys

import pytest

import interface.client


@pytest.mark.parametrize(
    "module, name", [("client", "Client"), ("client", "AsyncClient"), ("credentials", "Credentials")]
)
def test_an_old_name_is_the_new_class_and_warns(module: str, name: str) -> None:
    sys.modules.pop(f"orchestrator.api.{module}", None)
    with pytest.warns(DeprecationWarning, match=r"interface\.client"):
        old = importlib.import_module(f"orchestrator.api.{module}")
    assert getattr(old, name) is getattr(interface.client, name)
