#!/usr/bin/env bash
# Installs what is missing (Debian packages) and builds the release preset. Progress goes to stderr; the last line of
# stdout is the folder of the binaries. A second run does nothing but say so.
#   deploy/local/build.sh [--tests]     --tests: build the tests too
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/local/install.sh

target=binaries
for argument in "$@"; do
  case "$argument" in
    --tests) target=all ;;
    *) echo "build.sh: unknown argument $argument; wanted --tests" >&2; exit 2 ;;
  esac
done

install_packages deploy/local/packages.txt
build=build/release
if [ ! -f "$build/build.ninja" ]; then
  cmake --preset release >&2
fi
cmake --build "$build" --target "$target" --parallel "$(nproc)" >&2
echo "$PWD/$build/bin"
