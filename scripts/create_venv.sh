#!/usr/bin/env bash
# Makes the virtual environment named by the first argument and installs the locked packages into it.
set -euo pipefail

venv=$1
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "$0: the lock files need Python 3.11 or newer; '$python' is $("$python" --version)" >&2
  exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
  echo "==> creating $venv"
  "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)

# torch alone is resolved by pip, so that a local build of the pinned version is taken where one is offered;
# the packages that it needs come from the lock all the same.
echo "==> installing torch as locked (the longest step of a first run)"
"${pip[@]}" install "$(grep '^torch==' requirements/runtime.txt)" -c requirements/runtime.txt
echo "==> installing the locked Python packages"
"${pip[@]}" install --no-deps -r requirements/runtime.txt -r requirements/dev.txt
