"""The old name of what is in `interface.client`, kept for one version; importing it warns."""

import warnings

from interface.client.credentials import Credentials

__all__ = ["Credentials"]

warnings.warn("orchestrator.api.credentials is now interface.client", DeprecationWarning, stacklevel=2)
