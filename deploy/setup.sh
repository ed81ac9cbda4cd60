#!/usr/bin/env bash
# Makes .venv hold what the lock for this machine says, and thumbwheel itself, editable.
#
#   Does nothing when nothing changed; two at once are safe; one that was interrupted is repaired by the next.
#   PYTHON=python3.12       the Python to build on (default: the first of python3, python3.13, .12, .11 that fits)
#   ACCELERATOR=cpu|cuda    the lock to use (default: cuda where `nvidia-smi -L` finds a GPU)
#   PIP_FIND_LINKS=FOLDER   a folder of wheels; torch is taken from it where it has a matching one
set -euo pipefail
cd "$(dirname "$0")/.."

uv_version=0.13.9
venv=.venv
stamp=$venv/thumbwheel.stamp

fail() {
  printf '\nset-up: %s\n' "$1" >&2
  shift
  printf '  %s\n' "$@" >&2
  exit 1
}

say() { printf 'set-up: %s\n' "$*"; }

# Runs one step; what it printed is shown only when it fails.
step() {
  local what=$1 advice=$2 output
  shift 2
  say "$what"
  if ! output=$("$@" 2>&1); then
    printf '%s\n' "$output" | tail -n 40 >&2
    fail "this failed: $what" "$advice" "Then run the same command again."
  fi
}

find_python() {
  local candidate found=()
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    command -v "$candidate" > /dev/null || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null; then
      python=$candidate
      return
    fi
    found+=("$candidate is $("$candidate" -V 2>&1)")
  done
  fail "no Python 3.11, 3.12 or 3.13 found." "${found[@]:-There is no ${PYTHON:-python3} on PATH.}" \
    "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12"
}

version_of() { "$1" -ISc 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null; }

# What the environment must be, as the three lines of the stamp: a change of the first asks for a new one, of the
# second for other packages, of the third only for the project to be installed again.
find_kind() {
  # Its own interpreter is asked where there is one: it is what will run, and it starts fastest.
  python=$venv/bin/python
  if [ -n "${PYTHON:-}" ] || ! version=$(version_of $python); then
    find_python
    version=$(version_of "$python")
  fi
  accelerator=${ACCELERATOR:-}
  if [ -z "$accelerator" ]; then
    accelerator=cpu
    if command -v nvidia-smi > /dev/null && nvidia-smi -L 2> /dev/null | grep '^GPU ' > /dev/null; then
      accelerator=cuda
    fi
  fi
  lock=requirements/$accelerator.lock
  [ -f "$lock" ] || fail "ACCELERATOR=$accelerator: there is no $lock" "Choose cpu or cuda."
  kind="$version $(uname -m) $accelerator"
  packages=$(hash_of "$lock" "$0")
  project=$(hash_of pyproject.toml client/pyproject.toml)
}

hash_of() { cat "$@" | sha256sum | cut -c1-64; }

stamped() { sed -n "${1}p" $stamp 2> /dev/null || true; }

is_current() { [ "$(stamped 1,3)" = "$kind"$'\n'"$packages"$'\n'"$project" ]; }

make_venv() {
  local need=4 free
  if [ "$accelerator" = cuda ]; then need=14; fi
  free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1048576))
  [ "$free" -ge $need ] || fail "the disk is short: $free GiB free in $PWD, $need GiB needed." "Make room."
  if [ -e $venv ]; then rm -rf $venv; fi
  "$python" -c 'import ensurepip, venv' 2> /dev/null ||
    fail "$python cannot make virtual environments: its modules venv and ensurepip are missing." \
      "Debian, Ubuntu: apt-get install python3-venv (for another Python: python3.12-venv)."
  step "making $venv with Python $version" "See the message above." "$python" -m venv $venv
}

install_lock() {
  local torch=(--torch-backend cpu) tag
  tag=cp$(echo "$version" | cut -d. -f1,2 | tr -d .)
  if [ "$accelerator" = cuda ]; then
    torch=()
  elif compgen -G "${PIP_FIND_LINKS:-/nonexistent}/torch-*+cpu-$tag-*_$(uname -m).whl" > /dev/null; then
    torch=(--find-links "$PIP_FIND_LINKS")
  fi
  local network="It fetches packages: see that the package index can be reached (a mirror: PIP_INDEX_URL)."
  step "fetching uv $uv_version" "$network" $venv/bin/python -m pip install -q --disable-pip-version-check "uv==$uv_version"
  # Without dependencies: the lock is complete, and what it leaves out (CUDA builds beside a CPU torch) must stay out.
  step "installing $lock (some minutes the first time)" "$network" \
    env ${PIP_INDEX_URL:+"UV_DEFAULT_INDEX=$PIP_INDEX_URL"} \
    $venv/bin/uv pip install --no-config --no-deps "${torch[@]}" -r "$lock"
}

install_project() {
  step "installing thumbwheel" "See the message above." \
    $venv/bin/uv pip install --no-config --no-deps --no-build-isolation -e . -e client
}

find_kind
if is_current; then exit 0; fi

exec 9> .venv.lock
if ! flock -n 9; then
  say "another set-up is running here; waiting for it"
  flock 9
  if is_current; then exit 0; fi
fi
# Without a stamp the last set-up did not finish: nothing in the folder is trusted.
if [ "$(stamped 1)" != "$kind" ]; then
  find_python
  version=$(version_of "$python")
  kind="$version $(uname -m) $accelerator"
  make_venv
fi
installed=$(stamped 2)
rm -f $stamp
export VIRTUAL_ENV=$PWD/$venv
if [ "$installed" != "$packages" ]; then install_lock; fi
install_project
printf '%s\n' "$kind" "$packages" "$project" > $stamp.new
mv $stamp.new $stamp
say "done"
