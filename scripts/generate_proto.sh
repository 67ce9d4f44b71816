#!/usr/bin/env bash
# Generate the stubs in baton/ from proto/. Run by `make proto`; the result is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
"$python" -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. \
  proto/baton/v1/*.proto proto/baton/internal/v1/*.proto
