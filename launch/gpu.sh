#!/usr/bin/env bash
# Trains a card on the GPUs of this machine; the same command continues the run.
#
#   bash launch/gpu.sh [options] -- --config=CARD [arguments of distilljax train]
#
#   --gpus=N        GPUs along the batch axis, default 1 (CUDA_VISIBLE_DEVICES chooses)
#   --extras=A,B    further extras to install, for example tensorboard,wandb
#   --dry-run       print every command and run none
#   --help          this text
#
# Makes .venv with the extra "cuda" on the first call. XLA_FLAGS of the caller are kept
# and win. Paths are the caller's.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
# shellcheck source-path=SCRIPTDIR
source "$ROOT/launch/_launch.sh"

gpus=1 extras=""
while [ $# -gt 0 ]; do
  case "$1" in
    --gpus=?*) gpus="${1#*=}" ;;
    --extras=?*) extras="${1#*=}" ;;
    --dry-run) DRY_RUN=1 ;;
    --help)
      usage
      exit
      ;;
    --)
      shift
      break
      ;;
    *) refuse "$1" ;;
  esac
  shift
done
need_number gpus "$gpus"
take_train "$@"
need_tool nvidia-smi "install the NVIDIA driver; without a GPU call distilljax train"

run bash "$ROOT/launch/environment.sh" "cuda${extras:+,$extras}"
gpu_variables "$gpus"
split_batch "$gpus"
run_last env "${VARIABLES[@]}" "$VENV_PYTHON" -m distilljax train "${TRAIN[@]}"
