#!/usr/bin/env bash
# Runs one training in the background of this machine.
#
#   bash launch/worker.sh start [arguments of distilljax train]
#   bash launch/worker.sh idle       fails, with a word, while it runs
#   bash launch/worker.sh status     whether it runs, and the end of its log
#   bash launch/worker.sh stop       asks it to save and end, waits up to 10 minutes
#
# Its log is runs/worker/<host>.log in this repository. A start while it runs does
# nothing. The environment must be there: bash launch/environment.sh tpu.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

HOST="$(hostname)"
LOG="$ROOT/runs/worker/$HOST.log"
PID_FILE="$ROOT/runs/worker/$HOST.pid"

# Sets PID to the training's process id; false if it does not run.
alive() {
  PID="$(cat "$PID_FILE" 2>/dev/null)" && [ -n "$PID" ] &&
    grep -qsa distilljax "/proc/$PID/cmdline"
}

start() {
  if alive; then
    say "$HOST: already runs as process $PID; stop it first to start another"
    return
  fi
  [ -x "$VENV_PYTHON" ] ||
    die "no environment in $VENV" "make it: bash launch/environment.sh tpu"
  mkdir -p "${LOG%/*}"
  cd "$ROOT"
  printf '\n%s: distilljax train %s\n' "$(date -u +%FT%TZ)" "$*" >>"$LOG"
  nohup setsid "$VENV_PYTHON" -m distilljax train "$@" >>"$LOG" 2>&1 </dev/null &
  echo $! >"$PID_FILE"
  say "$HOST: started as process $!, log in $LOG"
}

idle() {
  ! alive || die "$HOST: trains as process $PID" "stop it first; it saves and ends"
}

status() {
  if alive; then
    say "$HOST: runs as process $PID"
  else
    say "$HOST: does not run"
  fi
  tail -n 20 "$LOG" 2>/dev/null || say "$HOST: no log yet in $LOG"
}

stop() {
  local seconds=0
  if ! alive; then
    say "$HOST: does not run"
    return
  fi
  kill -TERM "$PID"
  while alive && [ "$seconds" -lt 600 ]; do
    sleep 1
    seconds=$((seconds + 1))
  done
  ! alive || die "$HOST: process $PID still runs after $seconds s" "see $LOG"
  say "$HOST: ended after $seconds s; the same start continues it"
}

case "${1:-}" in
  start | idle | status | stop) "$@" ;;
  *)
    usage
    [ "${1:-}" = --help ] || exit 2
    ;;
esac
