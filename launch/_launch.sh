# shellcheck shell=bash
# What the launchers share; sourced after _env.sh, not run.
#
# A launcher calls every command through `run`, so that --dry-run prints what would run
# and nothing runs. Works with bash 3.2, which macOS has.

DRY_RUN=""
TRAIN=()
VARIABLES=()

# Prints a word so that a POSIX shell reads it back unchanged.
quoted() {
  local LC_ALL=C rest="$1" out="'"
  case "$rest" in
    "" | *[!A-Za-z0-9_./:=@%+,-]*) ;;
    *)
      printf '%s' "$rest"
      return
      ;;
  esac
  while [ "${rest#*\'}" != "$rest" ]; do
    out="$out${rest%%\'*}'\\''"
    rest="${rest#*\'}"
  done
  printf '%s' "$out$rest'"
}

# Prints words as one command line.
command_line() {
  local word separator=""
  for word in "$@"; do
    printf '%s' "$separator"
    quoted "$word"
    separator=" "
  done
}

# Says and runs a command, or prints it under --dry-run.
run() {
  if [ -n "$DRY_RUN" ]; then
    command_line "$@"
    echo
  else
    say "$(command_line "$@")"
    "$@"
  fi
}

# The same for the last command of a launcher, which takes its place and signals.
run_last() {
  if [ -z "$DRY_RUN" ]; then
    say "$(command_line "$@")"
    exec "$@"
  fi
  run "$@"
}

# Writes a file, or prints the command that does.
write_file() {
  local path="$1" text="$2"
  if [ -n "$DRY_RUN" ]; then
    printf "cat >%s <<'END_OF_FILE'\n%s\nEND_OF_FILE\n" "$(quoted "$path")" "$text"
  else
    printf '%s\n' "$text" >"$path"
  fi
}

# Ends with the mend if a command is missing; a dry run needs none.
need_tool() {
  [ -n "$DRY_RUN" ] || command -v "$1" >/dev/null 2>&1 ||
    die "the command $1 is not installed or not on PATH" "$2"
}

# Ends at an option that the launcher does not have, or has with a value.
refuse() {
  case "$1" in
    --*=) die "$1 has no value" "write it as ${1}VALUE" ;;
  esac
  die "unknown argument '$1'" "options are written --name=value; see --help" \
    "arguments of 'distilljax train' come after --"
}

need_option() {
  [ -n "$2" ] || die "--$1=... is missing" "$3" "see --help"
}

need_number() {
  case "$2" in
    "" | 0* | *[!0-9]*) die "--$1 must be a positive whole number, got '$2'" ;;
  esac
}

need_name() {
  local LC_ALL=C
  case "$1" in
    *[!a-zA-Z0-9._-]* | [!a-zA-Z]*)
      die "a name holds letters, digits, '-', '_' and '.', got '$1'"
      ;;
  esac
}

absolute() {
  case "$1" in
    /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
  esac
}

# Sets TRAIN to the arguments of `distilljax train`; --config must be among them.
take_train() {
  TRAIN=(${@+"$@"})
  has_train --config ||
    die "no card was named" "add it at the end: -- --config=configs/digits/scm.py"
}

# Whether --NAME, --NAME=... or --NAME.key=... is among the arguments of training.
has_train() {
  local argument
  for argument in ${TRAIN[@]+"${TRAIN[@]}"}; do
    case "$argument" in
      "$1" | "$1="* | "$1."*) return 0 ;;
    esac
  done
  return 1
}

# A job that is started again by a machine must continue, never start from nothing.
refuse_fresh() {
  ! has_train --fresh ||
    die "--fresh would remove the run whenever the job starts again" \
      "remove the run folder by hand, or choose another --out"
}

need_out() {
  has_train --out ||
    die "--out=FOLDER is missing from the arguments of 'distilljax train'" \
      "name a folder on storage that every worker sees and that outlives them" \
      "for example: -- --config=... --out=/mnt/runs/scm"
}

# Sets VARIABLES for training on so many GPUs; the caller's own values win.
gpu_variables() {
  local flags="${XLA_FLAGS:-}"
  VARIABLES=("XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}")
  if [ "$1" -gt 1 ]; then
    # Overlaps collectives with computation; the last of two equal flags counts.
    flags="--xla_gpu_enable_latency_hiding_scheduler=true${flags:+ $flags}"
  fi
  [ -z "$flags" ] || VARIABLES+=("XLA_FLAGS=$flags")
}

# Splits the batch over so many devices unless the caller names a mesh.
split_batch() {
  has_train --config.mesh || TRAIN+=("--config.mesh.data=$1")
}
