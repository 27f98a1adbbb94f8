# shellcheck shell=bash
# Makes and keeps the environment .venv of this repository; sourced, not run.
#
#   source launch/_env.sh
#   make_environment          installs distilljax with the extra "train"
#   make_environment test     installs the extra "test" too, other extras likewise
#
# Sets ROOT (the repository) and VENV_PYTHON. PYTHON=... chooses the interpreter.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
VENV_PYTHON="$VENV/bin/python"

say() { printf '[distilljax] %s\n' "$*" >&2; }

die() {
  printf '[distilljax] error: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '[distilljax]   %s\n' "$@" >&2
  exit 1
}

# Prints the comment at the head of the script that was called.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# Prints "ok|old|novenv VERSION", or nothing where the command does not run.
probe_python() {
  "$1" -c '
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if sys.version_info < (3, 11):
    print("old " + version)
else:
    try:
        import ensurepip, venv
        print("ok " + version)
    except ImportError:
        print("novenv " + version)
' 2>/dev/null || true
}

# Sets BASE_PYTHON to the first usable interpreter.
find_python() {
  local candidate found seen=() without_venv="" candidates
  candidates=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    found="$(probe_python "$candidate")"
    case "$found" in
      ok\ *)
        BASE_PYTHON="$candidate"
        return
        ;;
      novenv\ *)
        without_venv="$candidate"
        seen+=("$candidate is Python ${found#* } without venv or ensurepip")
        ;;
      old\ *) seen+=("$candidate is Python ${found#* }") ;;
      *) seen+=("$candidate does not run or is not installed") ;;
    esac
  done
  if [ -n "$without_venv" ]; then
    die "this Python cannot make a virtual environment with pip" "${seen[@]}" \
      "on Debian or Ubuntu: apt install python3-venv" \
      "or name another interpreter: PYTHON=/path/to/python3 bash $0"
  fi
  die "distilljax needs Python 3.11 or newer" "${seen[@]}" \
    "install one, or name it: PYTHON=/path/to/python3 bash $0"
}

python_version() {
  "$1" -I -c 'import platform; print(platform.python_version())' 2>/dev/null || true
}

# Says why .venv cannot be kept; prints nothing when it can.
venv_fault() {
  local version
  [ -e "$VENV" ] || { echo "missing"; return; }
  [ ! -e "$VENV/.installing" ] || { echo "left half-made"; return; }
  version="$(python_version "$VENV_PYTHON")"
  case "$version" in
    "") echo "broken"; return ;;
    [012].* | 3.[0-9].* | 3.10.*) echo "of Python $version"; return ;;
  esac
  if [ -n "${PYTHON:-}" ] && [ "$version" != "$(python_version "$PYTHON")" ]; then
    echo "of Python $version, not of $PYTHON"
  elif [ -e "$VENV/.made-for" ] && [ "$(cat "$VENV/.made-for")" != "$ROOT" ]; then
    echo "moved from another folder"
  elif ! "$VENV_PYTHON" -I -c 'import pip' >/dev/null 2>&1; then
    echo "without pip"
  fi
}

make_venv() {
  local fault="$1"
  find_python
  if [ "$fault" != "missing" ]; then
    [ -e "$VENV/.made-for" ] ||
      die "$VENV is $fault and was not made by this script" "move it away, then call again"
    say "the environment is $fault: making it anew"
    rm -rf "$VENV"
  fi
  say "making $VENV with $BASE_PYTHON ($(python_version "$BASE_PYTHON"))"
  mkdir -p "$VENV"
  printf '%s\n' "$ROOT" >"$VENV/.made-for"
  : >"$VENV/.installing"
  "$BASE_PYTHON" -m venv "$VENV" >"$VENV/install.log" 2>&1 || {
    cat "$VENV/install.log" >&2
    die "$BASE_PYTHON -m venv failed (its words are above)" \
      "on Debian or Ubuntu: apt install python3-venv" \
      "or name another interpreter: PYTHON=/path/to/python3 bash $0"
  }
}

# Sets CONSTRAINTS to the tested pins of this minor version, or the nearest ones.
choose_constraints() {
  local minor file tested distance nearest=999
  minor="$("$VENV_PYTHON" -I -c 'import sys; print(sys.version_info[1])')"
  CONSTRAINTS=""
  for file in "$ROOT"/constraints/constraints-3.*.txt; do
    [ -e "$file" ] || die "no constraints file in $ROOT/constraints"
    tested="${file##*-3.}"
    tested="${tested%.txt}"
    distance=$((minor > tested ? minor - tested : tested - minor))
    if [ "$distance" -lt "$nearest" ]; then
      nearest="$distance"
      CONSTRAINTS="$file"
    fi
  done
  if [ "$nearest" -ne 0 ]; then
    UNTESTED="no tested versions for Python 3.$minor: using ${CONSTRAINTS##*/}"
  else
    UNTESTED=""
  fi
}

fingerprint() {
  "$VENV_PYTHON" -I -c '
import hashlib, pathlib, sys
digest = hashlib.sha256((sys.version + sys.argv[1]).encode())
for name in sys.argv[2:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
' "$ROOT" "$ROOT/pyproject.toml" "$ROOT/setup.py" "$ROOT/distilljax/__about__.py" \
    "$CONSTRAINTS"
}

install_project() {
  local extra="$1" stamp="$2" target file start=$SECONDS
  target="${ROOT}[train${extra:+,$extra}]"
  [ -z "$UNTESTED" ] || say "$UNTESTED"
  say "installing distilljax${extra:+ with the extra $extra} (1 to 5 minutes, 1.2 GB)"
  : >"$VENV/.installing"
  for file in "$VENV"/.stamp-*; do
    # Extras of the same requirements stay installed beside this one.
    [ "$(cat "$file" 2>/dev/null)" = "$stamp" ] || rm -f "$file"
  done
  PIP_USER=0 "$VENV_PYTHON" -I -m pip install --disable-pip-version-check \
    --no-input --constraint "$CONSTRAINTS" --editable "$target" \
    >"$VENV/install.log" 2>&1 || {
    tail -n 30 "$VENV/install.log" >&2
    die "the install failed (pip's last words are above)" \
      "the whole log: $VENV/install.log" "call again to repeat it"
  }
  printf '%s\n' "$stamp" >"$VENV/.stamp-core"
  [ -z "$extra" ] || printf '%s\n' "$stamp" >"$VENV/.stamp-$extra"
  rm -f "$VENV/.installing"
  say "installed in $((SECONDS - start)) s"
}

# Lets one caller at a time install; the lock is on the repository folder itself.
lock() {
  command -v flock >/dev/null 2>&1 || return 0
  exec 9<"$ROOT"
  flock -n 9 || {
    say "waiting for another install to finish"
    flock 9
  }
}

make_environment() {
  local extra="${1:-}" fault stamp
  lock
  fault="$(venv_fault)"
  [ -z "$fault" ] || make_venv "$fault"
  choose_constraints
  stamp="$(fingerprint)"
  if [ "$(cat "$VENV/.stamp-${extra:-core}" 2>/dev/null)" != "$stamp" ]; then
    install_project "$extra" "$stamp"
  fi
  exec 9<&-
}

# Puts the compiler for TPUs into .venv/beside. Inside the environment jax would look for
# chips whenever it starts. There are builds for x86-64 Linux alone; elsewhere its tests
# say what is missing.
make_compiler() {
  local wanted target="$VENV/beside"
  [ "$(uname -sm)" = "Linux x86_64" ] || return 0
  lock
  wanted="$("$VENV_PYTHON" -I -c '
import importlib.metadata, re
lines = importlib.metadata.requires("jax") or []
print(*[re.split("[ ;]", line)[0] for line in lines if line.startswith("libtpu")])')"
  if [ "$(cat "$target/.stamp" 2>/dev/null)" != "$wanted" ]; then
    say "installing $wanted beside the environment (0.7 GB)"
    rm -rf "$target"
    PIP_USER=0 "$VENV_PYTHON" -I -m pip install --disable-pip-version-check \
      --no-input --no-deps --target "$target" "$wanted" >"$VENV/compiler.log" 2>&1 || {
      tail -n 30 "$VENV/compiler.log" >&2
      die "the install failed (pip's last words are above)" "call again to repeat it"
    }
    printf '%s\n' "$wanted" >"$target/.stamp"
  fi
  exec 9<&-
}
