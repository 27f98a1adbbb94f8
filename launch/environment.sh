#!/usr/bin/env bash
# Makes the environment .venv of this repository, or brings it up to date.
#
#   bash launch/environment.sh [EXTRA]
#
# EXTRA is an extra of the package beside "train", which is always installed: cuda,
# tpu, test, docs, or several joined by commas.
# PYTHON=... chooses the interpreter.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

case "${1:-}" in
  -*)
    usage
    [ "$1" = --help ] || exit 2
    ;;
  *) make_environment "${1:-}" ;;
esac
