#!/bin/sh
# Scores a checkpoint on several processes; on GPUs where there are any, else on CPU.
#   sh tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR and PORT for several machines (the same on each but for
# NODE_RANK); PYTHON, the interpreter.
set -eu
if [ "$#" -lt 3 ]; then
    echo 'usage: sh tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]' >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3
shift 3
tools=$(dirname "$0")
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$processes" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
