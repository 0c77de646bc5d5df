#!/usr/bin/env bash
# Trains any configuration with several msrun workers, on this machine or on several; or measures there.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workers=${LOCMOE_WORKERS_PER_NODE:-4}
nodes=${LOCMOE_NODES:-1}
node_rank=${LOCMOE_NODE_RANK:-0}
master_addr=${LOCMOE_MASTER_ADDRESS:-127.0.0.1}
node_addr=${LOCMOE_NODE_ADDRESS:-127.0.0.1}
port=${LOCMOE_PORT:-}
log_dir=
dry_run=false
config=
overrides=()
bench=
further=()

usage() {
    cat <<'TEXT'
usage: bash scripts/train_msrun.sh [OPTION ...] CONFIG [--set KEY.PATH=VALUE ...] [-- BENCH_OPTION ...]

Trains CONFIG with N msrun workers on this machine, shows the output of its first rank, and returns the job's exit
status (0 success, 2 bad input, 1 any other failure, 130 interrupted). Nothing that it started outlives it.

  --workers N           ranks on this machine (default 4)
  --set KEY.PATH=VALUE  override one key of CONFIG; may be repeated
  --port P              port on which the ranks meet (default on one machine: a free one)
  --log-dir D           folder of the ranks' logs (default: <train.output_dir>/logs/launch_<n>)
  --bench all-to-all    measure instead of training: pangu-sigma bench all-to-all, with what follows -- as its options
  --dry-run             show the command and its environment; start nothing
  --help                show this text

On several machines start it once on each, with the same arguments but for node's rank and address; rank 0's output,
which is the job's, shows on node 0. Logs go to a folder node_<R> of their own.

  --nodes M             machines, each with N workers (default 1)
  --node-rank R         which of them this one is, from 0 (default 0)
  --master-addr A       node 0's address
  --node-addr B         this machine's own address, on which its ranks listen for the others

With several nodes --port is required, and LOCMOE_MESH_SECRET must hold the same 64 hexadecimal digits everywhere
(`openssl rand -hex 32` makes some): the ranks prove it to each other. Defaults may come from LOCMOE_WORKERS_PER_NODE,
LOCMOE_NODES, LOCMOE_NODE_RANK, LOCMOE_MASTER_ADDRESS, LOCMOE_NODE_ADDRESS and LOCMOE_PORT.

Uses the active virtual environment, else the project's .venv, else the Python in PATH. OMP_NUM_THREADS (default: cores
divided by workers) and GLOG_v (MindSpore's log level, default 3: errors) are respected if set.
TEXT
}

bad_input() {
    echo "train_msrun.sh: error: $* (see --help)" >&2
    exit 2
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --dry-run)
                dry_run=true
                shift
                ;;
            --)
                shift
                further=("$@")
                return
                ;;
            --workers | --port | --log-dir | --set | --bench | --nodes | --node-rank | --master-addr | --node-addr)
                [ $# -ge 2 ] || bad_input "$1 needs a value"
                set_option "$1" "$2"
                shift 2
                ;;
            --workers=* | --port=* | --log-dir=* | --set=* | --bench=* | --nodes=* | --node-rank=* | --master-addr=* | --node-addr=*)
                set_option "${1%%=*}" "${1#*=}"
                shift
                ;;
            -*) bad_input "unknown option $1" ;;
            *)
                [ -z "$config" ] || bad_input "found a second configuration file, $1, after $config; expected one"
                config=$1
                shift
                ;;
        esac
    done
}

check_arguments() {
    [ -n "$config" ] || bad_input "no configuration file given"
    [[ -z $bench || $bench == all-to-all ]] || bad_input "--bench: found '$bench', expected all-to-all"
    [ -n "$bench" ] || [ ${#further[@]} -eq 0 ] || bad_input "found '${further[0]}' after --, which --bench takes; expected --bench"
    [[ $workers =~ ^[1-9][0-9]{0,3}$ ]] || bad_input "--workers: found '$workers', expected a number from 1 to 9999"
    [[ $nodes =~ ^[1-9][0-9]{0,3}$ ]] || bad_input "--nodes: found '$nodes', expected a number from 1 to 9999"
    [[ $node_rank =~ ^(0|[1-9][0-9]{0,3})$ ]] && [ "$node_rank" -lt "$nodes" ] ||
        bad_input "--node-rank: found '$node_rank', expected a number from 0 to $((nodes - 1)), below --nodes"
    if [ -n "$port" ]; then
        [[ $port =~ ^[1-9][0-9]{3,4}$ ]] && [ "$port" -ge 1024 ] && [ "$port" -le 65535 ] ||
            bad_input "--port: found '$port', expected a number from 1024 to 65535"
    fi
    [ "$nodes" -eq 1 ] || check_cluster_arguments
    [ "$node_rank" -ne 0 ] || [ "$node_addr" = "$master_addr" ] ||
        bad_input "--node-addr: found '$node_addr' on node 0, expected --master-addr ($master_addr)"
}

# What all nodes must agree on cannot be drawn here, and loopback reaches no other machine.
check_cluster_arguments() {
    [ -n "$port" ] || bad_input "--port: not given; with --nodes $nodes expected the same port on every node"
    [[ ${LOCMOE_MESH_SECRET:-} =~ ^[0-9a-fA-F]{64}$ ]] ||
        bad_input "environment variable LOCMOE_MESH_SECRET: $([ -n "${LOCMOE_MESH_SECRET:-}" ] && echo malformed || echo not set);" \
            "with --nodes $nodes expected the same 64 hexadecimal digits on every node"
    [[ -n $master_addr && $master_addr != 127.* && $master_addr != localhost ]] ||
        bad_input "--master-addr: found '$master_addr', expected node 0's address as the other nodes reach it"
    [[ -n $node_addr && $node_addr != 127.* && $node_addr != localhost ]] ||
        bad_input "--node-addr: found '$node_addr', expected this machine's address as the other nodes reach it"
}

set_option() {
    case $1 in
        --workers) workers=$2 ;;
        --port) port=$2 ;;
        --log-dir) log_dir=$2 ;;
        --set) overrides+=(--set "$2") ;;
        --bench) bench=$2 ;;
        --nodes) nodes=$2 ;;
        --node-rank) node_rank=$2 ;;
        --master-addr) master_addr=$2 ;;
        --node-addr) node_addr=$2 ;;
    esac
}

# The value of one key of the configuration, which is checked as a whole.
config_value() {
    "$python" -m pangu_sigma config "$config" ${overrides[@]+"${overrides[@]}"} --ranks $((nodes * workers)) --key "$1"
}

# Several machines are as many nodes to the routers and byte counters too.
match_nodes() {
    local ranks_per_node
    [ "$nodes" -gt 1 ] || return 0
    ranks_per_node=$(config_value parallel.ranks_per_node)
    if [ "$ranks_per_node" = null ]; then
        overrides+=(--set "parallel.ranks_per_node=$workers")
    elif [ "$ranks_per_node" != "$workers" ]; then
        bad_input "parallel.ranks_per_node: found $ranks_per_node, expected $workers (--workers) or null, with --nodes $nodes"
    fi
}

# Picks the log folder: one a launch, so that none is lost; on a shared file system the nodes of a launch find the same.
resolve_log_dir() {
    local output_dir launch=1 own=
    output_dir=$(config_value train.output_dir)
    [ "$nodes" -eq 1 ] || own=/node_$node_rank
    if [ -z "$log_dir" ]; then
        while launch_is_taken "$output_dir/logs/launch_$launch"; do launch=$((launch + 1)); done
        log_dir=$output_dir/logs/launch_$launch
    fi
    log_dir=$log_dir$own
    # The ranks write there by this name whatever their working directory.
    [[ $log_dir == /* ]] || log_dir=$PWD/$log_dir
}

launch_is_taken() {
    [ -e "$1" ] && { [ "$nodes" -eq 1 ] || [ -e "$1/node_$node_rank" ] || [ -e "$1/msrun.log" ]; }
}

# A free port (below those the system hands out by itself, one of which a rank's own connection could take first), the
# secret that the ranks prove to each other, and a tag by which every process of this job is found again.
choose_port_secret_tag() {
    read -r free_port secret tag < <("$python" - <<'PYTHON'
import random, secrets, socket
for port in random.sample(range(20000, 32000), 200):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
    break
print(port, secrets.token_hex(32), secrets.token_hex(8))
PYTHON
    )
    port=${port:-$free_port}
    [ "$nodes" -eq 1 ] || secret=$LOCMOE_MESH_SECRET
}

# The ranks share the cores; more threads than cores make every operator wait for the slowest.
export_environment() {
    local threads
    threads=$(($(nproc) / workers))
    [ "$threads" -ge 1 ] || threads=1
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-$OMP_NUM_THREADS}
    export GLOG_v=${GLOG_v:-3}
    export PYTHONUNBUFFERED=1
    export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
}

build_command() {
    local total=$((nodes * workers)) # also a rank that there is not: msrun is to show the log of none
    local words=(train)
    [ -z "$bench" ] || words=(bench "$bench")
    command=(msrun "--worker_num=$total" "--local_worker_num=$workers" "--master_addr=$master_addr" "--master_port=$port"
        "--node_rank=$node_rank" --join=True "--log_dir=$log_dir" "--tail_worker_log=$total"
        "$python" -m pangu_sigma "${words[@]}" "$config" ${overrides[@]+"${overrides[@]}"} ${further[@]+"${further[@]}"})
}

show_command() {
    local name
    for name in OMP_NUM_THREADS OPENBLAS_NUM_THREADS GLOG_v PYTHONUNBUFFERED PYTHONPATH; do
        printf '%s=%q \\\n' "$name" "${!name}"
    done
    printf 'LOCMOE_NODE_ADDRESS=%q \\\nLOCMOE_LOG_DIR=%q \\\nLOCMOE_MESH_PORT=%s \\\n' "$node_addr" "$log_dir" "$port"
    printf 'LOCMOE_MESH_SECRET=<%s> \\\n' "$([ "$nodes" -eq 1 ] && echo random || echo given)"
    printf '%q ' "${command[@]}"
    printf '\n'
}

# Ends every process of this job. msrun starts workers in sessions of their own, so they are found by the job's tag.
# shellcheck disable=SC2329 # called by the EXIT trap
end_job() {
    local status=$? process found=true
    trap - EXIT
    trap '' INT TERM HUP
    while [ -n "${msrun_pid:-}" ] && $found; do
        found=false
        for process in /proc/[0-9]*; do
            if grep -qsz "^LOCMOE_JOB=$tag\$" "$process/environ"; then
                kill -KILL "${process#/proc/}" 2>/dev/null && found=true
            fi
        done
        $found && sleep 0.1
    done
    exit "$status"
}

# Runs msrun in the background with the first rank's log on the terminal; its own messages go to msrun.log. Sets `status`.
run_job() {
    mkdir -p "$log_dir" 2>/dev/null || bad_input "cannot make the log folder $log_dir; expected a writable place"
    rm -f "$log_dir/errors.log" "$log_dir/workers.log"
    echo "logs: $log_dir"
    # Should this script be killed outright, msrun dies with it, and the workers with msrun.
    local bond=()
    if setpriv --pdeathsig KILL true 2>/dev/null; then bond=(setpriv --pdeathsig KILL); fi
    LOCMOE_JOB=$tag LOCMOE_LOG_DIR=$log_dir LOCMOE_MESH_PORT=$port LOCMOE_MESH_SECRET=$secret LOCMOE_NODE_ADDRESS=$node_addr \
        ${bond[@]+"${bond[@]}"} "${command[@]}" >"$log_dir/msrun.log" 2>&1 </dev/null &
    msrun_pid=$!
    tail -n +1 -s 0.3 -F --pid="$msrun_pid" "$log_dir/worker_$((node_rank * workers)).log" 2>/dev/null &
    local tail_pid=$!
    status=0
    wait "$msrun_pid" || status=$?
    wait "$tail_pid" || true
}

# The job's first failure, as `status<TAB>line`: from the ranks' own reports, else from what msrun says of the process.
first_failure() {
    if [ -s "$log_dir/errors.log" ]; then
        head -n 1 "$log_dir/errors.log" | cut -f 2-
        return
    fi
    local process code rank
    read -r process code < <(sed -n \
        's/.*Worker process \([0-9]*\) exit with exception. Error code: \(-\{0,1\}[0-9]*\).*/\1 \2/p' \
        "$log_dir/msrun.log") || true
    rank=$(awk -F '\t' -v pid="${process:-}" '$2 == pid { print $1 }' "$log_dir/workers.log" 2>/dev/null) || true
    if [ -z "${code:-}" ]; then
        printf '1\tpangu-sigma: error: msrun failed, see %s\n' "$log_dir/msrun.log"
    elif [ "$code" -lt 0 ]; then
        printf '1\tpangu-sigma: error: rank %s: killed by signal %s, see %s\n' "${rank:-?}" "${code#-}" "$log_dir"
    else
        printf '1\tpangu-sigma: error: rank %s: ended with status %s, see %s\n' "${rank:-?}" "$code" "$log_dir"
    fi
}

# Ends every rank's log with that rank's own line, or with why it has none.
complete_logs() {
    local rank line
    for ((rank = node_rank * workers; rank < (node_rank + 1) * workers; rank++)); do
        [ -e "$log_dir/worker_$rank.log" ] || continue
        line=$(awk -F '\t' -v rank="$rank" '$1 == rank { print $3; exit }' "$log_dir/errors.log" 2>/dev/null) || true
        [ -n "$line" ] || line="pangu-sigma: error: rank $rank: ended without a report of its own; first failure: $1"
        # A progress bar leaves its line open.
        [ -z "$(tail -c 1 "$log_dir/worker_$rank.log")" ] || line=$'\n'$line
        echo "$line" >>"$log_dir/worker_$rank.log"
    done
}

report_failure() {
    local line
    IFS=$'\t' read -r status line < <(first_failure)
    complete_logs "${line#pangu-sigma: error: }"
    echo "$line" >&2
}

parse_arguments "$@"
check_arguments
use_environment
export_environment
match_nodes
resolve_log_dir
choose_port_secret_tag
build_command
if $dry_run; then
    show_command
    exit 0
fi
command -v msrun >/dev/null || bad_input "msrun not found; expected MindSpore to be installed, as by scripts/test.sh"
trap end_job EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
run_job
[ "$status" -eq 0 ] || report_failure
exit "$status"
