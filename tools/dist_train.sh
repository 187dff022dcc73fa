#!/bin/sh
# Trains on several processes of one machine, or of several; on GPUs where there are any, else on CPU.
#   sh tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR and PORT for several machines (the same on each but for
# NODE_RANK); PYTHON, the interpreter.
set -eu
if [ "$#" -lt 2 ]; then
    echo 'usage: sh tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]' >&2
    exit 2
fi
config=$1
processes=$2
shift 2
tools=$(dirname "$0")
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$processes" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$tools/train.py" "$config" --launcher pytorch "$@"
