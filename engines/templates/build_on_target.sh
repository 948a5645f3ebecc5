#!/bin/sh
# Builds a plan from this package's ONNX graph with trtexec, on the machine that will run it.
# For TensorRT-RTX: TRTEXEC=tensorrt_rtx sh build_on_target.sh
set -eu
cd "$(dirname "$0")"
tool=${TRTEXEC:-trtexec}
if ! command -v "$tool" >/dev/null 2>&1; then
    echo "error: $tool is not on PATH. Set TRTEXEC, or use: python build_on_target.py" >&2
    exit 1
fi
# TensorRT 10 must be asked to keep the types of the graph; later ones always do.
typed=
if "$tool" --help 2>/dev/null | grep -q -e --stronglyTyped; then
    typed=--stronglyTyped
fi
mkdir -p local
"$tool" @{graph} --saveEngine=local/engine.plan.new $typed @{shapes} "$@@"
mv local/engine.plan.new local/engine.plan
case "$tool" in
    *rtx*) flavour=tensorrt_rtx ;;
    *) flavour=tensorrt ;;
esac
printf '{"flavour": "%s"}\n' "$flavour" >local/engine.json
