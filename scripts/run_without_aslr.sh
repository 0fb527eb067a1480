#!/usr/bin/env bash
# Runs a command with address randomisation off, where the machine allows that: the thread sanitizer of g++ 12 refuses
# the layouts of kernels with vm.mmap_rnd_bits above 28. To be dropped with g++ 14, which starts itself again that way.
set -euo pipefail

if setarch "$(uname -m)" -R true 2>/dev/null; then
  exec setarch "$(uname -m)" -R "$@"
fi
exec "$@"
