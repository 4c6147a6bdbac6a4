#!/usr/bin/env bash
# Generated code from proto/; the result is committed: a diff after this means that it was forgotten.
set -euo pipefail
cd "$(dirname "$0")/.."
# The virtual folder makes the generated modules import each other from the package.
.venv/bin/python -m grpc_tools.protoc -Iopene2b/gen=proto --python_out=src --pyi_out=src --grpc_python_out=src \
  opene2b/gen/node.proto
.venv/bin/python scripts/generate_schema.py
