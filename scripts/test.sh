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
if [ ${#real[@]} -eq 0 ] || [ ${#pytest_args[@]} -gt 0 ]; then
  if [ ${#real[@]} -gt 0 ]; then
    step "real engine" "$ROOT/scripts/vllm_cpu.sh"
  fi
  say "== tests"
  # In place of this shell: signals reach pytest, which ends what it started.
  exec "$bin/python" -m pytest ${real[@]+"${real[@]}"} ${pytest_args[@]+"${pytest_args[@]}"}
fi

# All tests: those on real engines beside the others, as they wait for their engines much of the time.
on_real_engines() {
  step "real engine" "$ROOT/scripts/vllm_cpu.sh"
  say "== tests on real engines"
  exec "$bin/python" -m pytest --real -m real
}
log=$(mktemp)
jobs_of_ours=()
# shellcheck disable=SC2329  # by the trap below
end_all() {
  local job
  for job in "${jobs_of_ours[@]}"; do kill -TERM -- "-$job" 2>/dev/null || true; done
  wait
  cat -- "$log"
  rm -f -- "$log"
  exit 130
}
set -m # each job is a process group that hears signals: tests press Ctrl-C in what they start
trap end_all INT TERM
say "== tests, and beside them those on real engines, whose output follows"
on_real_engines > "$log" 2>&1 &
jobs_of_ours+=($!)
"$bin/python" -m pytest --real -m "not real" &
jobs_of_ours+=($!)
failed=0
wait "${jobs_of_ours[1]}" || failed=$?
wait "${jobs_of_ours[0]}" || failed=$?
cat -- "$log"
rm -f -- "$log"
exit "$failed"
