#!/usr/bin/env bash
# Runs the tests in the environment of this repository.
#
#   bash launch/test.sh [--full[=k/n]] [arguments of pytest, paths from the root]
#
# Without --full the tests marked "full" are left out, by hand or because they take long
# (tests/dear.py), and the rest takes at most 15 minutes on 2 cores. --full runs all,
# --full=k/n the rest and the k-th of n parts of those.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

workers=2
marked=(-m "not full")
arguments=()
for argument in "$@"; do
  case "$argument" in
    --full) marked=() ;;
    --full=*) marked=("--shard=${argument#--full=}") ;;
    *) arguments+=("$argument") ;;
  esac
done

make_environment test
make_compiler
cd "$ROOT"

# Each worker gets its share of the cores, and no worker claims an accelerator.
cores="$("$VENV_PYTHON" -I -c '
import os
count = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
print(len(count))')"
share=$((cores > workers ? cores / workers : 1))
export PJRT_NPROC="${PJRT_NPROC:-$share}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$share}"
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-$share}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export MPLBACKEND="${MPLBACKEND:-Agg}"

exec "$VENV_PYTHON" -m pytest -n "$workers" --dist loadfile \
  ${marked[@]+"${marked[@]}"} ${arguments[@]+"${arguments[@]}"}
