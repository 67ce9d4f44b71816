"""The old name of `interface.client`, kept for one version; importing it warns."""

import warnings

from interface.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]

warnings.warn("orchestrator.api.client is now interface.client", DeprecationWarning, stacklevel=2)
