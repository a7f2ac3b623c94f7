#!/usr/bin/env bash
# The demo: 2 prefill and 2 decode vLLM engines with kvproxy in front, a few chats, and everything that can be
# seen of them: KV events, decisions, answers, and a closing table. Sets up what it needs (minutes, once).
#
#   scripts/kv_events.sh [--prefill N] [--decode N] [--logs DIR]
#
# KVPROXY_PYTHON      the Python to make kvproxy's environment with
# KVPROXY_PIP_ARGS    more arguments for every pip install, such as an index
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv
case " $* " in
  *" -h "* | *" --help "*) ;;
  *) "$ROOT/scripts/vllm_cpu.sh" ;;
esac
# In place of this shell, so that a signal reaches the program that ends what it started.
exec "$VENV/bin/python" "$ROOT/scripts/kv_events.py" "$@"
