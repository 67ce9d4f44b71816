"""The image's health check: asks /livez of the `baton node` or `baton gateway` in the same container.

Where it listens is given by ``POD_IP`` and ``BATON_PROBE_PORT``; by default 127.0.0.1 and 8081. Standard library only:
it runs every few seconds.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Mapping

TIMEOUT_S = 5.0


def is_alive(environment: Mapping[str, str]) -> bool:
    """Whether the container's process answers that it lives."""
    host, port = environment.get("POD_IP") or "127.0.0.1", environment.get("BATON_PROBE_PORT") or "8081"
    host = f"[{host}]" if ":" in host else host
    try:
        # Never through a proxy: it is this container.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{host}:{port}/livez", timeout=TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except OSError as error:
        print(f"no /livez at {host}:{port}: {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(0 if is_alive(os.environ) else 1)
