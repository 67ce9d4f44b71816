"""Write interface/http/openapi.json: every path of the HTTP interface, with the fields that its reader takes.

python scripts/generate_openapi.py            # write
python scripts/generate_openapi.py --check    # fail if what is there differs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from interface.status import ROWS  # noqa: E402
from scripts.openapi_bodies import BODIES, Body  # noqa: E402
from scripts.openapi_recorder import Recorder, Schema  # noqa: E402
from scripts.openapi_replies import COMPONENTS, DELETES, GETS, POSTS, Operation  # noqa: E402

TARGET = ROOT / "interface" / "http" / "openapi.json"
HEAD = {"title": "Baton", "description": "An inference cluster for models that think. docs/api.md says more."}


def body_schema(body: Body) -> Schema:
    """What a reader takes, by what it asks for."""
    recorder = Recorder()
    with recorder.listening():
        for sample in body.samples:
            body.read(sample)
    return {**recorder.schema("", body.overrides), "required": list(body.required)}


def document() -> dict[str, Any]:
    """The document, but for the server's version."""
    paths: dict[str, dict[str, Any]] = {}
    for path, operation in GETS.items():
        paths.setdefault(path, {})["get"] = _operation(operation)
    for path, operation in DELETES.items():
        paths.setdefault(path, {})["delete"] = _operation(operation)
    for path, operation in POSTS.items():
        made = _operation(operation)
        if (body := BODIES.get(path)) is not None:
            content = {"schema": body_schema(body), "examples": _examples(body)}
            made["requestBody"] = {"required": True, "content": {"application/json": content}}
        paths.setdefault(path, {})["post"] = made
    return {
        "openapi": "3.1.0",
        "info": {**HEAD, "version": ""},
        "security": [{"key": []}, {}],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": COMPONENTS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _examples(body: Body) -> dict[str, Any]:
    return {f"sample{index}": {"value": sample} for index, sample in enumerate(body.samples)}


def _operation(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{operation.reply}"}}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"description": "Server-sent events, where `stream` is true"}}
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{operation.error}"}}}
    statuses = sorted({row.http for row in ROWS.values()} | {405}) if operation.fails else []
    responses = {"200": {"description": operation.summary, "content": content}}
    responses |= {str(status): {"description": "An error", "content": error} for status in statuses}
    made: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in operation.parameters
    ]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in operation.query]
    return {**made, "parameters": parameters} if parameters else made


def main() -> int:
    """Write, or compare with ``--check``."""
    text = json.dumps(document(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text() != text:
            print(f"{TARGET.relative_to(ROOT)} is not what the readers take: run `make openapi`")
            return 1
        return 0
    TARGET.write_text(text)
    print(f"wrote {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
