"""As much of a Kubernetes API server as the controller needs, over plain HTTP: its Lease, pods, nodes, a RayCluster."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonpatch


@dataclass
class LeaseServer:
    """Leases by path, and the holders of each one, in order; other objects by path, which can be read and patched."""

    url: str = ""
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)
    holders: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    """Paths of objects that were read."""

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here."""
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(tree))
        return path

    def patch(self, path: str, operations: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        """Apply a JSON patch as the API server does: refused if it is of an old version."""
        known = self.objects[path]
        patched = jsonpatch.apply_patch(known, operations)
        if patched["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
            return 409, {"kind": "Status", "code": 409, "reason": "Conflict"}
        patched["metadata"]["resourceVersion"] = str(int(known["metadata"]["resourceVersion"]) + 1)
        self.objects[path] = patched
        return 200, patched

    def put(self, path: str, lease: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Store a lease as the API server does: refused if it was changed since it was read."""
        known = self.leases.get(path)
        version = lease["metadata"].get("resourceVersion")
        if known is not None and version != known["metadata"]["resourceVersion"]:
            return 409, {"kind": "Status", "code": 409, "reason": "Conflict"}
        lease["metadata"]["resourceVersion"] = str(int(version or 0) + 1)
        self.leases[path] = lease
        self.holders.append(lease["spec"].get("holderIdentity", ""))
        return 200, lease


@contextlib.contextmanager
def lease_server() -> Iterator[LeaseServer]:
    """Serve on a free port of loopback."""
    state = LeaseServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            state.read.add(path)
            found = state.leases.get(path) or state.objects.get(path)
            self._reply(200 if found else 404, found or {"kind": "Status", "code": 404, "reason": "NotFound"})

        def do_PATCH(self) -> None:
            self._reply(*state.patch(self.path, self._body()))

        def do_POST(self) -> None:
            lease = self._body()
            self._reply(*state.put(f"{self.path}/{lease['metadata']['name']}", lease))

        def do_PUT(self) -> None:
            self._reply(*state.put(self.path, self._body()))

        def _body(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def _reply(self, status: int, tree: dict[str, Any]) -> None:
            body = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
