#!/usr/bin/env bash
# Teaches, distils, samples and reports on the handwritten digits of scikit-learn.
#
#   bash launch/quickstart.sh [--fresh] [--smoke] [--out FOLDER] [--help]
#
# Needs Python >= 3.11 with pip and venv; makes .venv on the first call and writes
# to runs/quickstart/ of this repository, or to FOLDER.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

# The run starts in the repository; a relative FOLDER is meant from the caller's.
from_caller() {
  case "$1" in
    /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
  esac
}

arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out=?*) arguments+=("--out=$(from_caller "${1#--out=}")") ;;
    --out)
      arguments+=("$1")
      if [ $# -gt 1 ]; then
        shift
        arguments+=("$(from_caller "$1")")
      fi
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

make_environment
cd "$ROOT"
exec "$VENV_PYTHON" -m distilljax quickstart ${arguments[@]+"${arguments[@]}"}
