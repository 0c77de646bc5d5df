#!/usr/bin/env bash
# Runs a command on every node of a cluster that this machine plays, with a rate-limited network between the nodes.
# shellcheck disable=SC2329 # the EXIT trap calls some functions
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
# shellcheck source=scripts/cluster_network.sh
source "$scripts_folder/cluster_network.sh"

nodes=
ranks_per_node=
rate=
pin=false
keep_logs=
counters=
dry_run=false
command=()

own_end_s=10  # after a node's failure the others get this long to end by themselves, with a report of their own,
told_end_s=5  # and this long once they are told to end
port=29500    # every port of a new namespace is free

before=    # counters when the command started
scratch=   # folder of this run
running=() # processes that stand for the command on the nodes where it has not ended
tees=()

usage() {
    cat <<'TEXT'
usage: bash scripts/simulate_cluster.sh --nodes N --ranks-per-node M [OPTION ...] -- COMMAND [ARGUMENT ...]

Runs COMMAND once on each of N simulated nodes of this machine and returns the first failing node's exit status (0 success,
2 bad input, 130 interrupted). A node is a namespace with processes and a network of its own; a bridge joins the nodes.
Shows what node 0 prints, then the bytes that each node sent and received. Nothing that it made outlives it.

  --nodes N             simulated nodes, 1 to 99
  --ranks-per-node M    ranks that COMMAND is to start on a node
  --rate R              limit of each node's link in either direction, as in 200mbit (kbit, mbit, gbit; default: none)
  --pin                 keep each node's processes on its own, equal share of the cores
  --keep-logs D         folder for node_<R>.log, what each node printed (default: removed at the end)
  --counters F          write the byte counters to F as JSON too
  --dry-run             show the nodes and what runs on them; start nothing
  --help                show this text

COMMAND finds its place in LOCMOE_NODES, LOCMOE_NODE_RANK, LOCMOE_RANKS_PER_NODE, LOCMOE_MASTER_ADDRESS (node 0's),
LOCMOE_NODE_ADDRESS (its own), LOCMOE_PORT and LOCMOE_MESH_SECRET, so that scripts/train_msrun.sh runs there as it is:
  bash scripts/simulate_cluster.sh --nodes 2 --ranks-per-node 2 --rate 200mbit -- bash scripts/train_msrun.sh CONFIG
OMP_NUM_THREADS is set, unless it is already, to a rank's share of the cores.

When COMMAND fails on one node, the others may end by themselves for 10 s; then they are told to (SIGTERM), and killed
after 5 s more. Needs Linux, root, iproute2 (ip, tc) and util-linux (unshare, nsenter, setpriv, taskset).
TEXT
}

bad_input() {
    echo "simulate_cluster.sh: error: $* (see --help)" >&2
    exit 2
}

fail() {
    echo "simulate_cluster.sh: error: $*" >&2
    exit 1
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --dry-run | --pin)
                set_option "$1" true
                shift
                ;;
            --nodes | --ranks-per-node | --rate | --keep-logs | --counters)
                [ $# -ge 2 ] || bad_input "$1 needs a value"
                set_option "$1" "$2"
                shift 2
                ;;
            --nodes=* | --ranks-per-node=* | --rate=* | --keep-logs=* | --counters=*)
                set_option "${1%%=*}" "${1#*=}"
                shift
                ;;
            --)
                shift
                command=("$@")
                return
                ;;
            --workers-per-node | --workers-per-node=*) bad_input "--workers-per-node is called --ranks-per-node now; expected that" ;;
            -*) bad_input "unknown option $1" ;;
            *) bad_input "found '$1', expected an option, or -- before the command" ;;
        esac
    done
}

set_option() {
    case $1 in
        --nodes) nodes=$2 ;;
        --ranks-per-node) ranks_per_node=$2 ;;
        --rate) rate=$2 ;;
        --pin) pin=$2 ;;
        --keep-logs) keep_logs=$2 ;;
        --counters) counters=$2 ;;
        --dry-run) dry_run=$2 ;;
    esac
}

check_arguments() {
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || bad_input "--nodes: found '$nodes', expected a number from 1 to 99"
    [[ $ranks_per_node =~ ^[1-9][0-9]{0,3}$ ]] || bad_input "--ranks-per-node: found '$ranks_per_node', expected a number from 1 to 9999"
    [[ -z $rate || $rate =~ ^[1-9][0-9]{0,5}(kbit|mbit|gbit)$ ]] ||
        bad_input "--rate: found '$rate', expected a whole number and kbit, mbit or gbit, as in 200mbit"
    [ ${#command[@]} -gt 0 ] || bad_input "no command given; expected it after --"
    type -P "${command[0]}" >/dev/null || bad_input "${command[0]}: found no such program; expected a command after --"
    read_cores
    ! $pin || [ "$nodes" -le ${#cores[@]} ] ||
        bad_input "--pin: found ${#cores[@]} cores for $nodes nodes; expected at least one a node"
}

# The cores that this process may use, one by one: 0-1,4 becomes 0 1 4.
read_cores() {
    local part core
    cores=()
    while read -r part; do
        for ((core = ${part%-*}; core <= ${part#*-}; core++)); do cores+=("$core"); done
    done < <(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status | tr , '\n')
}

# Pinned, node R of N has cores R*M/N up to (R+1)*M/N of M.
cores_of() {
    local first=0 end=${#cores[@]}
    if $pin; then first=$(($1 * end / nodes)) end=$((($1 + 1) * end / nodes)); fi
    (IFS=, && echo "${cores[*]:first:end-first}")
}

export_environment() {
    local threads=$((${#cores[@]} / (nodes * ranks_per_node)))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    export LOCMOE_NODES=$nodes LOCMOE_RANKS_PER_NODE=$ranks_per_node LOCMOE_PORT=$port
    LOCMOE_MASTER_ADDRESS=$(address_of 0)
    LOCMOE_MESH_SECRET=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
    export LOCMOE_MASTER_ADDRESS LOCMOE_MESH_SECRET
}

show_plan() {
    local node name limit
    limit=$([ -z "$rate" ] || shaping "$rate")
    for ((node = 0; node < nodes; node++)); do
        echo "node $node: address $(address_of "$node"), cores $(cores_of "$node"), link ${limit:-not limited}"
    done
    for name in OMP_NUM_THREADS LOCMOE_NODES LOCMOE_RANKS_PER_NODE LOCMOE_MASTER_ADDRESS LOCMOE_PORT; do
        printf '%s=%q \\\n' "$name" "${!name}"
    done
    printf 'LOCMOE_MESH_SECRET=<random> \\\nLOCMOE_NODE_RANK=<R> \\\nLOCMOE_NODE_ADDRESS=%s.<R+1> \\\n' "$network"
    printf '%q ' "${command[@]}"
    printf '\n'
}

make_files() {
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/simulate_cluster.XXXXXX")
    log_dir=${keep_logs:-$scratch}
    mkdir -p "$log_dir" 2>/dev/null || bad_input "--keep-logs: cannot make $log_dir; expected a writable place"
    [ ! -e "$log_dir/node_0.log" ] || bad_input "--keep-logs: $log_dir holds node_0.log already; expected a new folder"
    [ ! -s "$counters" ] || [ "$(head -c 10 "$counters" 2>/dev/null)" == '{"nodes": ' ] ||
        bad_input "--counters: $counters is there already, and is none of this script's files; expected another name"
    # Emptied now, so that an earlier run's numbers never pass for this one's.
    [ -z "$counters" ] || : 2>/dev/null >"$counters" || bad_input "--counters: cannot write $counters; expected a writable place"
    mkfifo "$scratch/output" "$scratch/errors"
}

# Runs the command on a node in the background. It is told to end (SIGTERM) when the nsenter process ends.
# Arguments: the node; files for output and errors.
start_node() {
    local spaces=/proc/${holders[$1]}/ns
    # shellcheck disable=SC2016 # expanded by the inner shell
    LOCMOE_NODE_RANK=$1 LOCMOE_NODE_ADDRESS=$(address_of "$1") \
        setpriv --pdeathsig KILL taskset -c "$(cores_of "$1")" \
        nsenter "--net=$spaces/net" "--mount=$spaces/mnt" "--pid=$spaces/pid_for_children" \
        setpriv --pdeathsig TERM bash -c 'cd "$0" && exec "$@"' "$PWD" "${command[@]}" >>"$2" 2>>"$3" </dev/null &
    running[$1]=$!
}

# Node 0's output and errors go where this script's go, and to its log like the others'.
start_nodes() {
    local node log
    for ((node = 0; node < nodes; node++)); do
        log=$log_dir/node_$node.log
        : >"$log"
        [ "$node" -eq 0 ] || start_node "$node" "$log" "$log"
    done
    tee -a "$log_dir/node_0.log" <"$scratch/output" &
    tees=($!)
    tee -a "$log_dir/node_0.log" <"$scratch/errors" >&2 &
    tees+=($!)
    start_node 0 "$scratch/output" "$scratch/errors"
}

# Sets `status` to that of the first node that fails; returns when all have ended, or have had their time to.
await_nodes() {
    local node code end=
    status=0
    while [ ${#running[@]} -gt 0 ]; do
        for node in "${!running[@]}"; do
            kill -0 "${running[node]}" 2>/dev/null && continue
            code=0
            wait "${running[node]}" || code=$?
            unset "running[node]"
            [ "$code" -eq 0 ] || report_failure "$node" "$code"
            [ "$status" -ne 0 ] || status=$code
        done
        [ "$status" -eq 0 ] || end=${end:-$((SECONDS + own_end_s))}
        [ -z "$end" ] || [ "$SECONDS" -le "$end" ] || return 0
        sleep 0.1
    done
}

# Node 0 has shown its own error.
report_failure() {
    [ "$1" -eq 0 ] || echo "simulate_cluster.sh: node $1 ended with status $2: $(tail -n 1 "$log_dir/node_$1.log")" >&3
}

stop_nodes() {
    local end=$((SECONDS + told_end_s))
    [ ${#running[@]} -gt 0 ] || return 0
    disown "${running[@]}"
    kill -TERM "${running[@]}" 2>/dev/null
    until only_holders_are_left || [ "$SECONDS" -gt "$end" ]; do sleep 0.1; done
    kill -KILL "${running[@]}" 2>/dev/null
}

# Both sets of counters side by side, a line a node.
counted() {
    paste -d ' ' <(echo "$before") <(echo "$after")
}

show_counters() {
    local node sent received sent_before received_before
    printf '%-6s %15s %15s\n' node 'sent (B)' 'received (B)'
    while read -r node sent_before received_before _ sent received; do
        printf '%-6s %15d %15d\n' "$node" $((sent - sent_before)) $((received - received_before))
    done < <(counted)
}

write_counters() {
    local node sent received sent_before received_before comma='' quoted=null
    [ -z "$rate" ] || quoted=\"$rate\"
    printf '{"nodes": %d, "ranks_per_node": %d, "rate": %s, "interfaces": [' "$nodes" "$ranks_per_node" "$quoted"
    while read -r node sent_before received_before _ sent received; do
        printf '%s\n  {"node": %d, "address": "%s", ' "$comma" "$node" "$(address_of "$node")"
        printf '"tx_bytes": {"before": %d, "after": %d}, ' "$sent_before" "$sent"
        printf '"rx_bytes": {"before": %d, "after": %d}}' "$received_before" "$received"
        comma=,
    done < <(counted)
    printf '\n]}\n'
}

# Runs however this script ends: first the command, so that the counters are whole, then what it ran on.
end_cluster() {
    local status=$? after=
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    stop_nodes
    [ -z "$before" ] || after=$(read_counters)
    if ! remove_network; then
        echo "simulate_cluster.sh: error: these processes are still there: $(processes_inside | tr '\n' ' ')" >&2
        exit 1
    fi
    [ ${#tees[@]} -eq 0 ] || wait "${tees[@]}" # whatever fed them is gone
    if [ -n "$after" ]; then
        show_counters
        [ -z "$counters" ] || write_counters >"$counters" || status=1
    fi
    [ -z "$keep_logs" ] || echo "logs: $keep_logs"
    [ -z "$scratch" ] || rm -rf "$scratch"
    exit "$status"
}

parse_arguments "$@"
check_arguments
export_environment
if $dry_run; then
    show_plan
    exit 0
fi
require_tools
trap end_cluster EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
make_files
hold_namespaces "$nodes" "$scratch"
join_nodes "$rate"
before=$(read_counters)
start_nodes
exec 3>&2
await_nodes 2>/dev/null # where the shell would tell of a process that a signal ended
exit "$status"
