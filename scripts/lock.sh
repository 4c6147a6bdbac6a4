#!/usr/bin/env bash
# Refreshes the hash-locked requirements. No index and no file addresses in them: every machine has its own.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
    "$@"
}
compile pyproject.toml -o requirements/server.txt
compile pyproject.toml --extra dev --extra clients -o requirements/dev.txt
oldest=$(mktemp)
trap 'rm -f "$oldest"' EXIT
echo "e2b==2.30.0" >"$oldest"
compile --no-annotate "$oldest" -o requirements/oldest-client.txt
(cd tests/e2e/js && npm install --package-lock-only --no-audit --no-fund)
