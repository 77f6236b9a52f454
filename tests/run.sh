#!/usr/bin/env bash
# Installs, builds and tests from nothing; ends with ctest's summary.
#   tests/run.sh [unit|ci|all]   unit: the fast tier; ci (default): and the integration tier; all: and the slow tier
set -euo pipefail
cd "$(dirname "$0")/.."
tier=${1:-ci}
case "$tier" in
  unit) labels=(-L unit) ;;
  ci) labels=(-L 'unit|integration') ;;
  all) labels=() ;;
  *) echo "tests/run.sh: unknown tier $tier; wanted unit, ci or all" >&2; exit 2 ;;
esac
bin=$(deploy/local/build.sh --tests | tail -n 1)
ctest --test-dir "$(dirname "$bin")" --output-on-failure --parallel 2 "${labels[@]}"
