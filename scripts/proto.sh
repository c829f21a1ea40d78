#!/usr/bin/env bash
# Writes the gRPC stubs beside cluster/protos/verifier.proto, with the grpcio-tools of the lock.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
  cluster/protos/verifier.proto
