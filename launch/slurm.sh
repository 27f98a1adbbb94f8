#!/usr/bin/env bash
# Submits a card to Slurm, one process per GPU; the job continues its run by itself.
#
#   bash launch/slurm.sh --nodes=N --gpus-per-node=N --time=LIMIT [options] --
#     --config=CARD [arguments of distilljax train]
#
#   --nodes=N           machines
#   --gpus-per-node=N   GPUs of each, and processes
#   --time=LIMIT        as Slurm writes it, for example 24:00:00
#   --name=NAME         job name, default distilljax
#   --grace=SECONDS     time to save before the limit, default 120
#   --cpus-per-gpu=N    CPU cores of each process, default the cluster's
#   --sbatch=OPTION     a further option of sbatch, for example
#                       --sbatch=--partition=gpu; may be repeated
#   --logs=FOLDER       job script and logs, default runs/slurm of this repository
#   --extras=A,B        further extras to install, for example tensorboard,wandb
#   --dry-run           print every command and the job script, run nothing
#   --help              this text
#
# Call it on a login node: it makes .venv with the extra "cuda" there, so the repository
# must lie on storage that the compute nodes see. Before the time limit training gets
# SIGTERM, saves and ends, and the job queues itself again. Paths are the caller's.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
# shellcheck source-path=SCRIPTDIR
source "$ROOT/launch/_launch.sh"

nodes="" gpus="" limit="" name=distilljax grace=120 cpus="" extras=""
logs="$ROOT/runs/slurm" further=()
while [ $# -gt 0 ]; do
  case "$1" in
    --nodes=?*) nodes="${1#*=}" ;;
    --gpus-per-node=?*) gpus="${1#*=}" ;;
    --time=?*) limit="${1#*=}" ;;
    --name=?*) name="${1#*=}" ;;
    --grace=?*) grace="${1#*=}" ;;
    --cpus-per-gpu=?*) cpus="${1#*=}" ;;
    --sbatch=?*) further+=("${1#*=}") ;;
    --logs=?*) logs="$(absolute "${1#*=}")" ;;
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
need_option nodes "$nodes" "say how many machines, for example --nodes=2"
need_option gpus-per-node "$gpus" "say how many GPUs each has: --gpus-per-node=8"
need_option time "$limit" "say the time limit, for example --time=24:00:00"
need_number nodes "$nodes"
need_number gpus-per-node "$gpus"
need_number grace "$grace"
[ -z "$cpus" ] || need_number cpus-per-gpu "$cpus"
need_name "$name"
take_train "$@"
refuse_fresh
need_tool sbatch "call this on a login node of a Slurm cluster"

gpu_variables $((nodes * gpus))
split_batch $((nodes * gpus))

# Lines "#SBATCH --option=value"; values are quoted, as Slurm reads them like a shell.
directives() {
  local option
  for option in "--job-name=$name" "--nodes=$nodes" "--gpus-per-node=$gpus" \
    "--ntasks-per-node=$gpus" ${cpus:+"--cpus-per-task=$cpus"} "--time=$limit" \
    "--signal=TERM@$grace" --requeue --open-mode=append \
    "--output=$logs/%x-%j.log" "--chdir=$PWD" ${further[@]+"${further[@]}"}; do
    printf '#SBATCH %s\n' "$(quoted "$option")"
  done
}

# jax.distributed takes one process per GPU from Slurm: rank, address, and the GPU by
# its number on the node, so every process must see all of the node's GPUs.
step="$(command_line srun --gpu-bind=none --kill-on-bad-exit=0 \
  ${cpus:+"--cpus-per-task=$cpus"} --open-mode=append \
  "--output=$logs/%x-%j.%t.log" env "${VARIABLES[@]}" \
  "$VENV_PYTHON" -m distilljax train --distributed "${TRAIN[@]}")"

job="#!/usr/bin/env bash
$(directives)
set -euo pipefail

code=0
# shellcheck disable=SC2016 # arguments are taken as they are written
$step || code=\$?

# 143: SIGTERM came and everything is saved; the same job continues.
if [ \"\$code\" -eq 143 ]; then
  scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \"\$code\""

run bash "$ROOT/launch/environment.sh" "cuda${extras:+,$extras}"
run mkdir -p "$logs"
write_file "$logs/$name.sbatch" "$job"
run_last sbatch "$logs/$name.sbatch"
