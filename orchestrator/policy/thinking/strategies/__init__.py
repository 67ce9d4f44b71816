"""The strategies, a file each; what a file registers is offered, and nothing else has to name it.

A strategy is registered by a function from `Settings`; see `vote` for one to copy.
"""

from __future__ import annotations

import importlib
import pkgutil

from orchestrator.policy.thinking.registry import STRATEGIES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["STRATEGIES"]
