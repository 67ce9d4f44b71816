"""The Python client: `from interface.client import Client`."""

from interface.client.client import AsyncClient, Client
from interface.client.credentials import Credentials

__all__ = ["AsyncClient", "Client", "Credentials"]
