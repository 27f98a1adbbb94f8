#!/usr/bin/env bash
# Trains a card on TPU slices of a GKE cluster, as an XPK workload.
#
#   bash launch/gke.sh --cluster=C --workload=W --tpu-type=TYPE [options] --
#     --config=CARD --out=FOLDER [arguments of distilljax train]
#   bash launch/gke.sh --cluster=C [--workload=W] --status | --stop
#
#   --cluster=C           cluster made by `xpk cluster create`
#   --workload=W          name of the job
#   --tpu-type=TYPE       for example v5litepod-16
#   --num-slices=N        slices, default 1
#   --zone=ZONE           default gcloud's
#   --project=ID          default gcloud's
#   --storage=NAME        attached storage (`xpk storage attach`) that holds --out
#   --docker-image=IMAGE  image with distilljax installed; without it this repository is
#                         copied onto --base-image and installed when the job starts
#   --base-image=IMAGE    default python:3.12
#   --max-restarts=N      restarts after failures and preemptions, default 50
#   --grace=SECONDS       time to save after SIGTERM, default 120
#   --xpk=OPTION          a further option of xpk workload create, for example
#                         --xpk=--priority=high; may be repeated
#   --extras=A,B          further extras to install, for example tensorboard,wandb
#   --status              list the cluster's workloads
#   --stop                delete the workload, after it has saved
#   --dry-run             print every command and run none
#   --help                this text
#
# Paths of the card and of --out are the containers'.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
# shellcheck source-path=SCRIPTDIR
source "$ROOT/launch/_launch.sh"

cluster="" workload="" type="" slices=1 zone="" project="" storage="" image=""
base=python:3.12 restarts=50 grace=120 extras="" action=create
further=()
while [ $# -gt 0 ]; do
  case "$1" in
    --cluster=?*) cluster="${1#*=}" ;;
    --workload=?*) workload="${1#*=}" ;;
    --tpu-type=?*) type="${1#*=}" ;;
    --num-slices=?*) slices="${1#*=}" ;;
    --zone=?*) zone="${1#*=}" ;;
    --project=?*) project="${1#*=}" ;;
    --storage=?*) storage="${1#*=}" ;;
    --docker-image=?*) image="${1#*=}" ;;
    --base-image=?*) base="${1#*=}" ;;
    --max-restarts=?*) restarts="${1#*=}" ;;
    --grace=?*) grace="${1#*=}" ;;
    --xpk=?*) further+=("${1#*=}") ;;
    --extras=?*) extras="${1#*=}" ;;
    --status) action=list ;;
    --stop) action=delete ;;
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
need_option cluster "$cluster" "make one with: xpk cluster create"
[ "$action" = list ] ||
  need_option workload "$workload" "name the job, for example --workload=scm-1"
need_tool xpk "install it: pip install xpk"

cluster=("--cluster=$cluster" ${zone:+"--zone=$zone"} ${project:+"--project=$project"})
case "$action" in
  list)
    run_last xpk workload list "${cluster[@]}"
    exit
    ;;
  delete)
    run_last xpk workload delete "--workload=$workload" "${cluster[@]}"
    exit
    ;;
esac

need_name "$workload"
need_option tpu-type "$type" "say the kind of slice, for example --tpu-type=v5litepod-16"
need_number num-slices "$slices"
need_number max-restarts "$restarts"
need_number grace "$grace"
take_train "$@"
refuse_fresh
need_out

# XPK runs the command in a subshell and sends that SIGTERM: exec, so that it reaches
# training, which saves and ends with 143, one of the codes after which XPK restarts.
install="$(command_line bash launch/environment.sh "tpu${extras:+,$extras}")"
train="$(command_line -m distilljax train --distributed "${TRAIN[@]}")"
if [ -n "$image" ]; then
  source=("--docker-image=$image")
  command="exec python $train"
else
  source=("--base-docker-image=$base" "--script-dir=$ROOT")
  command="$install && exec .venv/bin/python $train"
fi
run_last xpk workload create "--workload=$workload" "${cluster[@]}" \
  "--tpu-type=$type" "--num-slices=$slices" "--max-restarts=$restarts" \
  "--termination-grace-period-seconds=$grace" ${storage:+"--storage=$storage"} \
  ${further[@]+"${further[@]}"} "${source[@]}" "--command=$command"
