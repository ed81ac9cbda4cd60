#!/usr/bin/env bash
# Writes the Python stubs of protos/ to the folder given (default: the client's).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-client/thumbwheel_client/v1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m grpc_tools.protoc -Iprotos --python_out="$work" --grpc_python_out="$work" \
  --mypy_out="$work" --mypy_grpc_out="$work" protos/thumbwheel/v1/*.proto
# protoc writes absolute imports from the proto package, whose name is the spine's; the stubs live in the client.
sed -i -E 's/\bthumbwheel\.v1 import/thumbwheel_client.v1 import/; s/^import thumbwheel\.v1\./import thumbwheel_client.v1./; s/\bthumbwheel\.v1\.([a-z]+_pb2)/thumbwheel_client.v1.\1/g' "$work"/thumbwheel/v1/*.py*
mkdir -p "$out"
rm -f "$out"/*_pb2*.py "$out"/*_pb2*.pyi
cp "$work"/thumbwheel/v1/* "$out"/
