#!/usr/bin/env bash
# A Ray cluster for the length of a Slurm job, and one command of rayft on it.
#
#   sbatch cluster/slurm.sh sweep SWEEP.yaml
#   sbatch cluster/slurm.sh resume runs/NAME
#
# All nodes must see the current folder, the environment with rayft, the home folder, and the sweep's `storage`.
# Two minutes before the time is over the sweep is told to stop, and can be resumed. By hand:
#
#   scancel --batch --signal=TERM JOB
#
#SBATCH --job-name=rayft
#SBATCH --output=rayft-%j.log
# EDIT
#SBATCH --nodes=2
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
# One `ray start` for a node
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@120
# A job that Slurm starts again would start the sweep over instead of resuming it
#SBATCH --no-requeue
set -euo pipefail

# shellcheck source=/dev/null
source "${RAYFT_VENV:-.venv}/bin/activate" # EDIT

die() {
  printf 'slurm.sh: %s\n' "$*" >&2
  exit 1
}

[[ $# -ge 2 ]] || die "usage: sbatch $0 sweep SWEEP.yaml | resume RUN"
[[ -n ${SLURM_JOB_ID:-} ]] || die "is for sbatch"

# This script runs on the job's first node, which is the head. Jobs may share nodes: each has ports and a folder of its
# own.
head=${SLURMD_NODENAME:-$(hostname -s)}
head_ip=${RAYFT_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)} # EDIT if the first address isn't the one of the fast network
port=$((10000 + 3 * (SLURM_JOB_ID % 7000)))
address=$head_ip:$port
dashboard_port=$((port + 1))
folder=/tmp/rayft-$SLURM_JOB_ID

export RAY_AUTH_MODE=token
if [[ -z ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} ]]; then
  # Ray itself makes it readable by all, and whoever has it runs code here.
  [[ -s ~/.ray/auth_token ]] || (umask 077 && ray get-auth-token --generate >/dev/null)
  chmod 600 ~/.ray/auth_token
fi
unset RAY_ADDRESS

# A task on each node, beside what runs there already. Newer versions of srun don't take the CPUs from the job.
a_task=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK")

# `$0` is the folder, which other users can't enter. The ports that aren't chosen would be the same for each job.
# shellcheck disable=SC2016
ray_start='mkdir -m 700 "$0" && exec ray start --block --temp-dir="$0/ray" --num-cpus="$SLURM_CPUS_PER_TASK" \
  --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 "$@"'

steps=()
# shellcheck disable=SC2329 # the trap calls it
end_steps() {
  local status=$?
  trap '' TERM INT
  kill -TERM "${steps[@]}" 2>/dev/null || true
  wait "${steps[@]}" || true
  "${a_task[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" rm -rf -- "$folder" || true
  exit "$status"
}
trap end_steps EXIT
trap 'exit 143' TERM INT

"${a_task[@]}" --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$ray_start" "$folder" \
  --head --node-ip-address="$head_ip" --port="$port" --ray-client-server-port=$((port + 2)) \
  --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" &
steps+=($!)
until (exec 3<>"/dev/tcp/$head_ip/$port") 2>/dev/null; do
  kill -0 "${steps[0]}" 2>/dev/null || die "the head ended while it came up"
  sleep 1
done
workers=$((SLURM_JOB_NUM_NODES - 1))
if ((workers > 0)); then
  "${a_task[@]}" --nodes="$workers" --ntasks="$workers" --exclude="$head" bash -c "$ray_start" "$folder" \
    --address="$address" &
  steps+=($!)
fi

# rayft plans with the nodes that are up when it starts.
python - "$address" "$SLURM_JOB_NUM_NODES" <<'END' &
import sys, time, ray

ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(1)
END
steps+=($!)
status=0
wait -n || status=$?
! kill -0 "${steps[-1]}" 2>/dev/null || die "a node ended while the cluster came up"
((status == 0)) || die "the cluster did not come up"
unset 'steps[-1]'
echo "the dashboard and the job API are at 127.0.0.1:$dashboard_port on $head"

rayft "$@" --address "$address" &
sweep=$!
stopping=
trap 'stopping=yes; trap "" TERM INT; kill -TERM "$sweep" || true' TERM INT
wait "$sweep" || status=$?
if [[ -n $stopping ]]; then # it was the signal that ended `wait`
  status=0
  wait "$sweep" || status=$?
fi
((status == 0)) || echo "rayft ended with status $status; to go on: sbatch cluster/slurm.sh resume RUN" >&2
exit "$status"
