#!/usr/bin/env bash
# Builds the site of the documentation in the environment of this repository.
#
#   bash launch/docs.sh [--serve] [arguments of mkdocs]
#
# It is written to build/site; a warning is an error. --serve shows it on this machine
# (http://127.0.0.1:8000) and builds again when a page changes.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

command=(build)
arguments=()
for argument in "$@"; do
  case "$argument" in
    --serve) command=(serve) ;;
    --help)
      usage
      exit
      ;;
    *) arguments+=("$argument") ;;
  esac
done

make_environment docs
cd "$ROOT"
# No accelerator is claimed, and the theme's advertisement is left out.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" NO_MKDOCS_2_WARNING=1
"$VENV_PYTHON" -m mkdocs "${command[@]}" --strict ${arguments[@]+"${arguments[@]}"}
[ "${command[0]}" = serve ] || say "open $ROOT/build/site/index.html"
