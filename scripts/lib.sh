# shellcheck shell=bash
# Shared by the scripts beside it, which source it: where things are, readable lines, environments
# that are reused while they are current.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${KVPROXY_ENV:-$ROOT/.venv}
VLLM_ENV=${KVPROXY_VLLM_ENV:-$ROOT/.vllm-env}
# shellcheck disable=SC2034  # used by the scripts that source this
TINY_MODEL=$VLLM_ENV/models/tiny

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# The first of the named Pythons that runs and is new enough.
find_python() {
  local candidate
  for candidate in "$@"; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v -- "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer with its venv module was found (tried: $*)"
}

# A name for the state of some words and files: it changes when one of them does.
stamp_of() { { printf '%s\n' "$1"; shift; cat -- "$@"; } | cksum | tr -d ' \n'; }
is_current() { [ -f "$1/.stamp" ] && [ "$(cat "$1/.stamp")" = "$2" ]; }
mark_current() { printf '%s' "$2" > "$1/.stamp"; }

# An empty virtual environment at $1, made with Python $2.
fresh_env() {
  rm -rf "$1"
  "$2" -m venv "$1" || die "could not make a virtual environment in $1"
}

# The environment kvproxy itself runs in, with its development extras. Brought up to date in place, for
# someone may be using it; made afresh only for another Python.
ensure_venv() {
  local stamp python
  python=$(find_python "${KVPROXY_PYTHON:-}" python3 python3.13 python3.12 python3.11)
  stamp=$(stamp_of "$("$python" -V)" "$ROOT/setup.cfg")
  is_current "$VENV" "$stamp" && return
  say "preparing the environment ${VENV#"$PWD"/}"
  [ "$("$VENV/bin/python" -V 2>/dev/null)" = "$("$python" -V)" ] || fresh_env "$VENV" "$python"
  # shellcheck disable=SC2086  # the variable holds several arguments
  "$VENV/bin/python" -m pip install -qq --disable-pip-version-check ${KVPROXY_PIP_ARGS:-} \
    --editable "${ROOT}[dev,clients]" || die "pip could not install kvproxy into $VENV"
  mark_current "$VENV" "$stamp"
}
