#!/usr/bin/env bash
# The demo: 2 prefill and 2 decode engines with kvproxy in front, a few chats, and everything that can be seen of
# them: KV events, decisions, answers, and a closing table. Sets up what it needs.
#
#   scripts/kv_events.sh                    stand-in engines, which behave like vLLM: seconds
#   scripts/kv_events.sh --engine vllm      real vLLM engines on the CPU: minutes the first time, then about one
#   scripts/kv_events.sh [--prefill N] [--decode N] [--logs DIR]
#
# KVPROXY_PYTHON      the Python to make kvproxy's environment with
# KVPROXY_PIP_ARGS    more arguments for every pip install, such as an index
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv
case " $* " in
  *" -h "* | *" --help "*) ;;
  *" --engine vllm "* | *" --engine=vllm "*) "$ROOT/scripts/vllm_cpu.sh" ;;
esac
# In place of this shell, so that a signal reaches the program that ends what it started.
exec "$VENV/bin/python" "$ROOT/scripts/kv_events.py" "$@"
