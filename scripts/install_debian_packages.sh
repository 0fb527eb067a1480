#!/usr/bin/env bash
# Installs the named groups of Debian packages that are missing; says nothing and touches no network when none is.
set -euo pipefail

wanted=()
for group in "$@"; do
  case "$group" in
    build)
      wanted+=(nlohmann-json3-dev libxxhash-dev liburing-dev libgtest-dev libgmock-dev libbenchmark-dev)
      wanted+=(libfuse3-3) # tests/python/broken_disk.py
      # A Python that was not installed by Debian brings its own headers.
      if ! "${PYTHON:-python3}" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
        wanted+=(python3-dev)
      fi
      ;;
    tidy) wanted+=(clang-16 clang-tidy-16) ;;
    asan) wanted+=(clang-16 libclang-rt-16-dev llvm-16) ;; # llvm-16 names the lines in what is reported
    cache) wanted+=(ccache) ;; # .ci/run
    disk) wanted+=(fio) ;; # benchmarks/disk_rate.cpp compares with it
    *)
      echo "$0: unknown group '$group'; the groups are build, tidy, asan, cache, disk" >&2
      exit 2
      ;;
  esac
done

missing=()
for package in "${wanted[@]}"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

echo "==> installing Debian packages: ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
  echo "$0: not root, so run: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# dpkg asks for no terminal here, and its progress is noise unless it fails.
if ! log=$(apt-get install -y -qq --no-install-recommends "${missing[@]}" 2>&1); then
  printf '%s\n' "$log" >&2
  exit 1
fi
