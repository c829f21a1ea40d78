#!/usr/bin/env bash
# Creates the environment of each peer of `make bench-peers` below build/peers, with pip alone.
# Does nothing when the stamp of the last set-up matches. PYTHON picks another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=requirements/bench-peers.txt
venv=build/peers/trl
stamp=$venv/.setup-stamp
log=build/peers/setup.log
want=$(cat "$lock" scripts/bench_peers.sh | sha256sum | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

mkdir -p build/peers
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || { echo "set-up needs Python 3.11 ($python not found); set PYTHON=/path/to/python3.11" >&2; exit 3; }
pip_install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" >>"$log" 2>&1 || {
    grep -E '^ *ERROR' "$log" | tail -n 5 >&2
    echo "pip failed; the whole log is $log" >&2
    exit 3
  }
}
: >"$log"
echo "creating $venv (about a minute)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip_install "$(grep -E '^torch==' "$lock")"
"$venv/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' || {
  echo "pip found the CUDA build of PyTorch; point PIP_INDEX_URL or PIP_FIND_LINKS to a place with the CPU wheel" >&2
  exit 3
}
pip_install --no-deps -r <(grep -v '^torch==' "$lock")
"$venv/bin/python" -m pip check --disable-pip-version-check
echo "$want" >"$stamp"
