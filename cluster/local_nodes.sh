#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, to try things on: a head and N workers.
#
#   cluster/local_nodes.sh start N
#   cluster/local_nodes.sh stop
#
# From the environment, with what holds otherwise:
#   RAYFT_NODES_PORT             6379   Ray's port
#   RAYFT_NODES_DASHBOARD_PORT   8265   the port of dashboard and job API, on 127.0.0.1 only
#   RAYFT_NODES_CLIENT_PORT      10001  the port of Ray's server for ray://, which rayft doesn't use
#   RAYFT_NODES_CPUS                    CPUs of each node; the cores divided by the nodes, at least 1
#   RAYFT_NODES_OBJECT_STORE_MB  256    shared memory of each node
#   RAYFT_NODES_START_SECONDS    120    how long a node may take to come up
#   RAYFT_NODES_STOP_SECONDS     15     how long they may take to end before they are killed
set -euo pipefail

port=${RAYFT_NODES_PORT:-6379}
dashboard_port=${RAYFT_NODES_DASHBOARD_PORT:-8265}
client_port=${RAYFT_NODES_CLIENT_PORT:-10001} # Ray can't do without the server
object_store_mb=${RAYFT_NODES_OBJECT_STORE_MB:-256}
start_seconds=${RAYFT_NODES_START_SECONDS:-120}
stop_seconds=${RAYFT_NODES_STOP_SECONDS:-15}

# Not 127.0.0.1: `ray start` would take the machine's own address instead. Each node has the next one.
head_ip=127.0.0.2
address=$head_ip:$port
state=${XDG_RUNTIME_DIR:-/tmp}/rayft-local-nodes-$UID
current_cluster=${RAY_TMPDIR:-${TMPDIR:-/tmp}}/ray/ray_current_cluster # where Ray's `auto` looks
boot_id=$(</proc/sys/kernel/random/boot_id)

declare -A nodes=()   # the process of each `ray start`: its pid and when it started
declare -A members=() # likewise every living process of the nodes
declare -A jobs=()    # likewise those that jobs have started

die() {
  printf 'local_nodes.sh: %s\n' "$*" >&2
  exit 1
}

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

# What /proc says of a process from its state on, as an array; fails if there is no such process.
read_stat() { # PID
  local line=
  { IFS= read -r -d '' line <"/proc/$1/stat"; } 2>/dev/null || [[ -n $line ]] || return 1
  read -ra stat <<<"${line##*) }" # the name before it, in brackets, may hold anything
}

# Whether a process still runs and no other has got its pid since.
runs() { # PID STARTED
  local stat
  read_stat "$1" && [[ ${stat[0]} != Z && ${stat[19]} == "$2" ]]
}

# Ray's daemons and workers stay in the session that `setsid` made. What a job starts has one of its own, but is below.
find_members() {
  local -A parent=() session=() started=()
  local stat path pid up leader
  for path in /proc/[0-9]*; do
    pid=${path#/proc/}
    if read_stat "$pid" && [[ ${stat[0]} != Z ]]; then
      parent[$pid]=${stat[1]} session[$pid]=${stat[3]} started[$pid]=${stat[19]}
    fi
  done
  members=() jobs=()
  for pid in "${!started[@]}"; do
    for ((up = pid; up > 1; up = parent[$up])); do
      [[ -n ${started[$up]:-} ]] || break
      leader=${session[$up]}
      [[ -z ${nodes[$up]:-} || ${nodes[$up]} != "${started[$up]}" ]] || members[$pid]=${started[$pid]}
      # A session outlives its leader; but if the leader's pid is someone else's by now, so is the session.
      [[ -z ${nodes[$leader]:-} || ${started[$leader]:-${nodes[$leader]}} != "${nodes[$leader]}" ]] ||
        members[$pid]=${started[$pid]}
    done
    [[ -z ${members[$pid]:-} || -n ${nodes[${session[$pid]}]:-} ]] || jobs[$pid]=${started[$pid]}
  done
}

# Ends the nodes, and waits until every process of theirs is gone.
end_nodes() {
  local -A left=()
  local pid kill_from=$((SECONDS + stop_seconds))
  local deadline=$((kill_from + 30))
  find_members
  # Ray's own end with their node, but what a job has started wouldn't.
  for pid in "${!jobs[@]}" "${!nodes[@]}"; do
    [[ -z ${members[$pid]:-} ]] || kill -TERM "$pid" 2>/dev/null || true
  done
  while ((SECONDS < deadline)); do
    # Remembered, since a process that has lost its parents is found no more.
    for pid in "${!members[@]}"; do left[$pid]=${members[$pid]}; done
    for pid in "${!left[@]}"; do
      if ! runs "$pid" "${left[$pid]}"; then
        unset "left[$pid]"
      elif ((SECONDS >= kill_from)); then
        kill -KILL "$pid" 2>/dev/null || true
      fi
    done
    ((${#left[@]} > 0)) || return 0
    sleep 0.2
    find_members
  done
  printf 'local_nodes.sh: these processes would not end: %s\n' "${!left[*]}" >&2
  return 1
}

# Fails if there is no state; fills `nodes` from it otherwise.
load_state() {
  local name pid started
  [[ -e $state || -L $state ]] || return 1
  [[ -d $state && ! -L $state && -O $state && $(stat -c %a "$state") == 700 ]] ||
    die "$state is not a folder that this script has made; move it away"
  nodes=()
  [[ -f $state/boot_id && $(<"$state/boot_id") == "$boot_id" && -f $state/nodes ]] || return 0
  while read -r name pid started; do
    [[ $pid =~ ^[0-9]+$ && $started =~ ^[0-9]+$ ]] || die "$state/nodes is damaged at $name; end its nodes by hand"
    nodes[$pid]=$started
  done <"$state/nodes"
}

forget() {
  # Another cluster may be the current one by now.
  if [[ -f $current_cluster && $(<"$current_cluster") == "$address" ]]; then
    rm -f -- "$current_cluster"
  fi
  rm -rf -- "$state"
}

make_token() {
  export RAY_AUTH_MODE=token
  [[ -z ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} ]] || return 0
  local file=$HOME/.ray/auth_token
  # Ray itself makes it readable by all, and whoever has it runs code here.
  [[ -s $file ]] || (umask 077 && "$ray" get-auth-token --generate >/dev/null)
  chmod 600 "$file"
}

check_free() { # PORT SETTING
  local ip
  [[ $1 =~ ^[1-9][0-9]{0,4}$ && $1 -lt 65536 ]] || die "$2 must be a port, but got $1"
  for ip in 127.0.0.1 "$head_ip"; do
    ! (exec 3<>"/dev/tcp/$ip/$1") 2>/dev/null || die "port $1 is in use; set $2 to another"
  done
}

# Starts a node, and waits until it is up.
bring_up() { # NAME OPTIONS...
  local name=$1 log=$state/$1.log deadline=$((SECONDS + start_seconds)) pid='' stat
  shift
  until grep -qs 'Ray runtime started' "$log"; do
    # Ray itself gives up on a node after 30 s, which is little on a busy machine.
    if [[ -z $pid ]] || { ! runs "$pid" "${nodes[$pid]}" && grep -q 'timed out during startup' "$log"; }; then
      # These ports are left to Ray, as each node would take the same ones. There are no GPUs, which each would count as
      # its own.
      setsid "$ray" start --block --num-cpus="$cpus" --num-gpus=0 --object-store-memory=$((object_store_mb << 20)) \
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 "$@" </dev/null >"$log" 2>&1 &
      pid=$!
      read_stat "$pid" || die "$name did not start"
      nodes[$pid]=${stat[19]}
      printf '%s %s %s\n' "$name" "$pid" "${stat[19]}" >>"$state/nodes"
    elif ! runs "$pid" "${nodes[$pid]}"; then
      tail -n 20 "$log" >&2
      die "$name ended while it came up; all nodes are ended again"
    fi
    if ((SECONDS >= deadline)); then
      tail -n 20 "$log" >&2
      die "$name was not up after $start_seconds s; all nodes are ended again"
    fi
    sleep 0.2
  done
}

# Leaves nothing behind of a start that failed or was interrupted.
undo() {
  local status=$?
  trap '' INT TERM HUP
  end_nodes && forget
  exit "$status"
}

start() { # WORKERS
  local workers=$1 number
  ray=$(type -P ray) || die "there is no ray on the PATH: source .venv/bin/activate"
  if load_state; then
    find_members
    ((${#members[@]} == 0)) || die "nodes are running already; end them first: $0 stop"
    forget # left by a crash
  fi
  check_free "$port" RAYFT_NODES_PORT
  check_free "$dashboard_port" RAYFT_NODES_DASHBOARD_PORT
  check_free "$client_port" RAYFT_NODES_CLIENT_PORT
  cpus=${RAYFT_NODES_CPUS:-$(($(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) / (workers + 1)))}
  [[ $cpus =~ ^[0-9]+$ ]] || die "RAYFT_NODES_CPUS must be a number, but got $cpus"
  ((cpus > 0)) || cpus=1
  make_token

  mkdir -m 700 -- "$state" || die "another start is under way"
  trap undo EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  printf '%s\n' "$boot_id" >"$state/boot_id"
  printf '%s\n' "$address" "$current_cluster" >"$state/address"
  unset RAY_ADDRESS
  export PYTHONUNBUFFERED=1 # the log says that a node is up when it is
  # All nodes share the cores; rayft sets torch's threads itself.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1}

  bring_up head --head --node-ip-address="$head_ip" --port="$port" --ray-client-server-port="$client_port" \
    --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port"
  for ((number = 1; number <= workers; number++)); do
    bring_up "worker-$number" --address="$address" --node-ip-address="127.0.0.$((number + 2))" \
      --include-log-monitor=false
  done
  trap - EXIT INT TERM HUP
  cat <<END
$((workers + 1)) Ray nodes of $cpus CPU(s) each run on this machine:
  rayft sweep SWEEP.yaml --address $address
  rayft submit SWEEP.yaml --address http://127.0.0.1:$dashboard_port
  $0 stop
END
}

stop() {
  load_state || {
    echo "no nodes are running"
    return
  }
  if [[ -f $state/address ]]; then # the settings of the start, whatever they are now
    { read -r address && read -r current_cluster; } <"$state/address"
  fi
  end_nodes
  forget
}

case ${1:-} in
  start)
    [[ $# -eq 2 && $2 =~ ^[1-9][0-9]?$ ]] || usage
    start "$2"
    ;;
  stop)
    [[ $# -eq 1 ]] || usage
    stop
    ;;
  *) usage ;;
esac
