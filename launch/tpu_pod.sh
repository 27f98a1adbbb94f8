#!/usr/bin/env bash
# Trains a card on every worker of a TPU slice over ssh; the same command continues.
#
#   bash launch/tpu_pod.sh --name=TPU --zone=ZONE [options] --
#     --config=CARD --out=FOLDER [arguments of distilljax train]
#   bash launch/tpu_pod.sh --name=TPU --zone=ZONE --status | --stop
#
#   --name=TPU        name of the slice, as `gcloud compute tpus tpu-vm list` shows it
#   --zone=ZONE       its zone
#   --project=ID      its project, default gcloud's
#   --setup=COMMAND   shell command on every worker before the install, in the copy of
#                     the repository: a newer Python, a mount, the data
#   --folder=FOLDER   the copy of the repository in each worker's home, default distilljax
#   --extras=A,B      further extras to install, for example tensorboard,wandb
#   --status          whether each worker trains, and the end of its log
#   --stop            ask every worker to save and end
#   --dry-run         print every command and run none
#   --help            this text
#
# Copies this repository (without .git, .venv, runs and data) to the workers, makes .venv
# with the extra "tpu" there and starts training in the background; refuses while one
# runs. Paths of the card and of --out are the workers'; --out must lie on storage that
# all of them see.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
# shellcheck source-path=SCRIPTDIR
source "$ROOT/launch/_launch.sh"

name="" zone="" project="" setup="" folder=distilljax extras="" action=start
while [ $# -gt 0 ]; do
  case "$1" in
    --name=?*) name="${1#*=}" ;;
    --zone=?*) zone="${1#*=}" ;;
    --project=?*) project="${1#*=}" ;;
    --setup=?*) setup="${1#*=}" ;;
    --folder=?*) folder="${1#*=}" ;;
    --extras=?*) extras="${1#*=}" ;;
    --status) action=status ;;
    --stop) action=stop ;;
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
need_option name "$name" "see: gcloud compute tpus tpu-vm list --zone=ZONE"
need_option zone "$zone" "say the slice's zone, for example --zone=us-west4-a"
need_name "$name"
need_tool gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"

where=("--zone=$zone" ${project:+"--project=$project"} --worker=all)
there="cd $(quoted "$folder")"

# Runs a shell command on every worker.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--command=$1"
}

if [ "$action" != start ]; then
  on_workers "$there && bash launch/worker.sh $action"
  exit
fi

take_train "$@"
refuse_fresh
need_out
archive="${TMPDIR:-/tmp}/distilljax-$name.tar.gz"
run tar -czf "$archive" --exclude=./.git --exclude=./.venv --exclude=./runs \
  --exclude=./data -C "$ROOT" .
run gcloud compute tpus tpu-vm scp "$archive" "$name:distilljax.tar.gz" "${where[@]}"
target="$(quoted "$folder")"
unpack="mkdir -p $target && tar -xzf distilljax.tar.gz -C $target && $there"
install="$(command_line bash launch/environment.sh "tpu${extras:+,$extras}")"
# A training that runs keeps its files: it is to be stopped first.
on_workers "if [ -e $target/launch/worker.sh ]; then bash $target/launch/worker.sh idle; \
fi && $unpack${setup:+ && { $setup; \}} && $install"
on_workers "$there && $(
  command_line bash launch/worker.sh start --distributed "${TRAIN[@]}"
)"
