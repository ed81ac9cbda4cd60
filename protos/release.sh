#!/usr/bin/env bash
# After a change of the protos: sees that no caller of the last ones breaks, then records them and writes the stubs.
# The record is a file, not a commit, so that the check holds in any clone. Removing it is how to break on purpose.
set -euo pipefail
cd "$(dirname "$0")/.."
buf lint protos
if [ -f protos/released.json ]; then
  buf breaking protos --against protos/released.json
fi
buf build protos --exclude-source-info -o protos/released.json
protos/generate.sh
