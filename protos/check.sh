#!/usr/bin/env bash
# Holds the protos to their style, to what was promised before (released.json) and the stubs to the protos.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

buf lint protos
buf breaking protos --against protos/released.json
buf build protos --exclude-source-info -o "$work/released.json"
protos/generate.sh "$work/stubs"
if ! cmp -s "$work/released.json" protos/released.json ||
  ! diff -r -x __init__.py -x __pycache__ "$work/stubs" client/thumbwheel_client/v1; then
  echo 'protos/ changed, but not what is generated from it: run `make protos` and commit the result' >&2
  exit 1
fi
