#!/usr/bin/env bash
# Resolves requirements/*.lock anew, one per accelerator. Without --upgrade, what is locked stays where it can.
# A lock never names an index or a folder. What *-excludes.txt lists would break the environment: CUDA builds beside a
# CPU torch, and the parents of the package that carries the embedded model.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv

compile() {
  local accelerator=$1
  shift
  "$uv" pip compile --no-config -q pyproject.toml --universal --python-version 3.11 \
    --extra "$accelerator" --extra direct --extra export --extra test --extra tracing --excludes "requirements/$accelerator-excludes.txt" \
    --no-header --no-annotate -o "requirements/$accelerator.lock" "$@" > /dev/null
}

cpu_torch=(--torch-backend cpu)
if compgen -G "${PIP_FIND_LINKS:-/nonexistent}/torch-*+cpu-*.whl" > /dev/null; then
  cpu_torch=(--find-links "$PIP_FIND_LINKS" --no-emit-find-links)
fi
compile cpu "${cpu_torch[@]}" "$@"
compile cuda "$@"
