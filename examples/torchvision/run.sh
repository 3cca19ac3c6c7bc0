#!/bin/sh
# `make torchvision`: two of torchvision's networks, trained for a few steps by the demo's script, each to a release.
#   run.sh [OUT] [train.py's options]     OUT defaults to torchvision-out
set -eu
here=$(dirname "$0")
out=${1:-torchvision-out}
[ $# -eq 0 ] || shift
[ $# -ne 0 ] || set -- --size 64 --epochs 8 --keep 4 --steps 40

# As soup sets it: threads that spin while they wait slow a busy machine.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

for NETWORK in mobilenet_v3_small resnet18; do
    export NETWORK # val.yaml asks for it
    printf '\n%s\n' "$NETWORK"
    mkdir -p "$out/$NETWORK"
    cp "$here/val.yaml" "$out/$NETWORK/"
    python "$here/../demo/train.py" --model "torchvision:$NETWORK" --out "$out/$NETWORK" "$@"
    soup build --val "$out/$NETWORK/val.yaml" -o "$out/$NETWORK/soup"
    soup export "$out/$NETWORK/soup" --trt --compute-capability 8.6,8.9
    soup verify "$out/$NETWORK/soup/release"
done
