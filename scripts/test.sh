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

bin=$VENV/bin
step "environment" ensure_venv
step "format" "$bin/ruff" format --check --quiet .
step "lint" "$bin/ruff" check --quiet .
step "types" "$bin/mypy" --no-error-summary
step "import rules" "$bin/lint-imports" --no-cache
step "shell scripts" "$bin/shellcheck" --external-sources --source-path=SCRIPTDIR scripts/*.sh .ci/run
if [ ${#real[@]} -gt 0 ]; then
  step "real engine" "$ROOT/scripts/vllm_cpu.sh"
fi
say "== tests"
# In place of this shell: signals reach pytest, which ends what it started, and its summary is the last line.
exec "$bin/python" -m pytest ${real[@]+"${real[@]}"} ${pytest_args[@]+"${pytest_args[@]}"}
