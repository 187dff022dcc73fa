#!/bin/sh
# Scores a checkpoint as a Slurm job.
#   sh tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
# such as --eval bbox. Environment: GPUS in all (8), GPUS_PER_NODE (8, or GPUS if that is less),
# CPUS_PER_TASK (5), SRUN_ARGS, further arguments of srun; PYTHON, the interpreter.
set -eu
if [ "$#" -lt 4 ]; then
    echo 'usage: sh tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments]' >&2
    exit 2
fi
partition=$1
job=$2
config=$3
checkpoint=$4
shift 4
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$([ "$gpus" -lt 8 ] && echo "$gpus" || echo 8)}
tools=$(dirname "$0")
# SRUN_ARGS is split into words on purpose.
# shellcheck disable=SC2086
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/test.py" "$config" "$checkpoint" --launcher slurm "$@"
