#!/usr/bin/env bash
# Trains any configuration with several msrun workers, on this machine or on several; or measures there.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
# shellcheck source=scripts/nodes.sh
source "$scripts_folder/nodes.sh"

workers=${LOCMOE_RANKS_PER_NODE:-4}
nodes=${LOCMOE_NODES:-1}
node_rank=${LOCMOE_NODE_RANK:-0}
master_addr=${LOCMOE_MASTER_ADDRESS:-127.0.0.1}
node_addr=${LOCMOE_NODE_ADDRESS:-127.0.0.1}
port=${LOCMOE_PORT:-}
nodes_file=
bind_core= # auto, or a JSON object
dry_run=false
given=() # options that place this machine in the job

usage() {
    cat <<TEXT
usage: bash scripts/train_msrun.sh [OPTION ...] CONFIG [--set KEY.PATH=VALUE ...] [-- FURTHER_OPTION ...]

Trains CONFIG with M ranks on this machine, which msrun starts, shows the output of its first rank, and returns the job's exit
status (0 success, 2 bad input, 1 any other failure, 130 interrupted). Nothing that it started outlives it.

  --ranks-per-node M    ranks on this machine (default 4)
  --set KEY.PATH=VALUE  override one key of CONFIG; may be repeated
  --port P              port on which the ranks meet (default: a free one; with several nodes, without --ssh: none)
  --log-dir D           folder of the ranks' logs (default: <train.output_dir>/logs/launch_<n>)
  --bench all-to-all    measure instead of training: pangu-sigma bench all-to-all, with what follows -- as its options
  --bench self-test     try devices, groups and links instead: pangu-sigma doctor --self-test
  --generate            continue prompts instead of training, with experts spread over the ranks: pangu-sigma generate,
                        with what follows -- as its options
  --env-file F          shell file to read first, such as CANN's set_env.sh (default: none)
  --stop-timeout S      told to end (SIGTERM), the job writes a checkpoint and returns 0; after S seconds without one it is
                        killed and returns 143 (default $stop_timeout)
  --bind-core W         bind each rank to cores of its own (msrun --bind_core): auto, those near its NPU as npu-smi tells them;
                        or a JSON object, as in '{"device0": ["0-23"], "device1": ["24-47"]}'. For Ascend (default: not bound)
  --dry-run             show the commands and their environment; start nothing
  --help                show this text

On several machines start it once on each, with the same arguments but for node's rank and address; rank 0's output,
which is the job's, shows on node 0. Logs go to a folder node_<R> of their own.

  --nodes N             machines, each with M ranks (default 1)
  --node-rank R         which of them this one is, from 0 (default 0)
  --master-addr A       node 0's address (default 127.0.0.1)
  --node-addr B         this machine's own address, on which its ranks listen for the others (default 127.0.0.1)
  --nodes-file F        all of that from a file, the same on every machine: an address or name a line, node 0 first, then,
                        if it differs, the destination for ssh; # begins a comment (default: none). --node-rank is
                        needed only if several lines are this machine
  --ssh                 start it on the nodes of --nodes-file from here, which need not be one of them; the folder that
                        this runs in, the project and CONFIG must have the same names everywhere
  --ssh-command C       how to reach them (default: $ssh_command)

With several nodes --port is required, and LOCMOE_MESH_SECRET must hold the same 64 hexadecimal digits everywhere
(\`openssl rand -hex 32\` makes some): the ranks prove it to each other. With --ssh both are drawn unless given. Defaults
may come from LOCMOE_RANKS_PER_NODE, LOCMOE_NODES, LOCMOE_NODE_RANK, LOCMOE_MASTER_ADDRESS, LOCMOE_NODE_ADDRESS and
LOCMOE_PORT.

Uses the active virtual environment, else the project's .venv, else the Python in PATH. OMP_NUM_THREADS (default: cores
divided by workers) and GLOG_v (MindSpore's log level, default 3: errors; on Ascend 2, with MS_SUBMODULE_LOG_v={DEVICE:1}, which
shows operators that run on the CPU for want of a device's kernel) are respected if set.
TEXT
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --dry-run | --ssh | --generate)
                set_option "$1" true
                shift
                ;;
            --)
                shift
                further=("$@")
                return
                ;;
            --ranks-per-node | --port | --log-dir | --set | --bench | --nodes | --node-rank | --master-addr | --node-addr | \
                --nodes-file | --ssh-command | --env-file | --stop-timeout | --bind-core)
                [ $# -ge 2 ] || bad_input "$1 needs a value"
                set_option "$1" "$2"
                shift 2
                ;;
            --ranks-per-node=* | --port=* | --log-dir=* | --set=* | --bench=* | --nodes=* | --node-rank=* | --master-addr=* | --node-addr=* | \
                --nodes-file=* | --ssh-command=* | --env-file=* | --stop-timeout=* | --bind-core=*)
                set_option "${1%%=*}" "${1#*=}"
                shift
                ;;
            --workers | --workers=*) bad_input "--workers is called --ranks-per-node now; expected that" ;;
            -*) bad_input "unknown option $1" ;;
            *)
                [ -z "$config" ] || bad_input "found a second configuration file, $1, after $config; expected one"
                config=$1
                shift
                ;;
        esac
    done
}

set_option() {
    case $1 in
        --ranks-per-node) workers=$2 ;;
        --port) port=$2 ;;
        --log-dir) log_dir=$2 ;;
        --set) overrides+=(--set "$2") ;;
        --bench) bench=$2 ;;
        --generate) generate=$2 ;;
        --nodes) nodes=$2 given+=("$1") ;;
        --node-rank) node_rank=$2 given+=("$1") ;;
        --master-addr) master_addr=$2 given+=("$1") ;;
        --node-addr) node_addr=$2 given+=("$1") ;;
        --nodes-file) nodes_file=$2 ;;
        --ssh-command) ssh_command=$2 ;;
        --env-file) env_file=$2 ;;
        --stop-timeout) stop_timeout=$2 ;;
        --bind-core) bind_core=$2 ;;
        --ssh) over_ssh=$2 ;;
        --dry-run) dry_run=$2 ;;
    esac
}

check_arguments() {
    local option
    [ -z "${LOCMOE_WORKERS_PER_NODE:-}" ] ||
        bad_input "environment variable LOCMOE_WORKERS_PER_NODE is called LOCMOE_RANKS_PER_NODE now; expected that"
    [ -n "$config" ] || bad_input "no configuration file given"
    check_task
    check_stop_timeout
    [[ $workers =~ ^[1-9][0-9]{0,3}$ ]] || bad_input "--ranks-per-node: found '$workers', expected a number from 1 to 9999"
    [ -z "$port" ] || check_port "$port"
    check_bind_core
    if [ -z "$nodes_file" ]; then
        ! $over_ssh || bad_input "--ssh: given without --nodes-file; expected a file that names the nodes"
        return
    fi
    for option in ${given[@]+"${given[@]}"}; do
        if $over_ssh || [ "$option" != --node-rank ]; then
            bad_input "$option: given with --nodes-file$($over_ssh && echo " and --ssh"), which says it"
        fi
    done
}

# msrun would only warn, in its own log, of what it cannot bind. On CPU each rank has threads of its own already (--ranks-per-node).
check_bind_core() {
    [ -n "$bind_core" ] || return 0
    local cores='"([0-9]+-[0-9]+|[0-9]+(,[0-9]+)*)"' entry object
    entry="\"(device[0-9]+|scheduler)\": ?\\[$cores(, ?$cores)*\\]"
    object="^\\{$entry(, ?$entry)*\\}\$"
    [[ $bind_core == auto || $bind_core =~ $object ]] || bad_input "--bind-core: found '$bind_core', expected auto," \
        "or a JSON object of cores by device, as in {\"device0\": [\"0-23\"], \"device1\": [\"24-47\"]}"
    [ "$bind_core" = auto ] || [ "$(grep -o device <<<"$bind_core" | wc -l)" = "$workers" ] ||
        bad_input "--bind-core: found '$bind_core', expected cores for as many devices as --ranks-per-node has ranks ($workers)"
    if $dry_run || $over_ssh; then return; fi # the devices are elsewhere
    compgen -G '/dev/davinci[0-9]*' >/dev/null || bad_input "--bind-core: found no /dev/davinci0, expected an Ascend device with its driver loaded"
    command -v taskset >/dev/null || bad_input "--bind-core: taskset not found, which msrun binds with; expected it in PATH (package util-linux)"
}

# Where the environment does not place this machine in a job as a whole, as simulate_cluster.sh does, a part may be left over.
note_cluster() {
    local name whole=true variables=(LOCMOE_NODES LOCMOE_NODE_RANK LOCMOE_RANKS_PER_NODE LOCMOE_MASTER_ADDRESS LOCMOE_NODE_ADDRESS LOCMOE_PORT)
    [ -z "${RANK_TABLE_FILE:-}" ] || [ -r "$RANK_TABLE_FILE" ] || bad_input "environment variable RANK_TABLE_FILE: cannot read" \
        "'$RANK_TABLE_FILE'; expected an Ascend rank table, which says where the nodes are, or none (unset RANK_TABLE_FILE)"
    for name in "${variables[@]}"; do [ -n "${!name:-}" ] || whole=false; done
    $whole || note_environment "${variables[@]}"
    [ -z "$hint" ] || echo "$hint"
}

# Nodes, addresses and this machine's place, from the nodes file.
use_nodes_file() {
    [ -n "$nodes_file" ] || return 0
    list_nodes --nodes-file "$nodes_file"
    require_addresses
    nodes=${#names[@]} master_addr=${addresses[0]} node_addr=
    if $over_ssh || [ ${#given[@]} -gt 0 ]; then return; fi
    node_rank=$(own_place --node-rank)
    [ -n "$node_rank" ] || bad_input "--nodes-file: none of the nodes in $nodes_file is this machine; expected one, or --node-rank, or --ssh"
}

check_nodes() {
    [[ $nodes =~ ^[1-9][0-9]{0,3}$ ]] || bad_input "--nodes: found '$nodes', expected a number from 1 to 9999"
    [[ $node_rank =~ ^(0|[1-9][0-9]{0,3})$ ]] && [ "$node_rank" -lt "$nodes" ] ||
        bad_input "--node-rank: found '$node_rank', expected a number from 0 to $((nodes - 1)), below --nodes"
    [ -z "$nodes_file" ] || node_addr=${addresses[node_rank]}
    [ "$nodes" -eq 1 ] || check_cluster_arguments
    [ "$node_rank" -ne 0 ] || [ "$node_addr" = "$master_addr" ] ||
        bad_input "--node-addr: found '$node_addr' on node 0, expected --master-addr ($master_addr)"
}

# What all nodes must agree on cannot be drawn here, and loopback reaches no other machine.
check_cluster_arguments() {
    $over_ssh || [ -n "$port" ] || bad_input "--port: not given; with --nodes $nodes expected the same port on every node"
    if ! $over_ssh || [ -n "${LOCMOE_MESH_SECRET:-}" ]; then check_secret "--nodes $nodes"; fi
    [[ -n $master_addr && $master_addr != 127.* && $master_addr != localhost ]] ||
        bad_input "--master-addr: found '$master_addr', expected node 0's address as the other nodes reach it"
    [[ -n $node_addr && $node_addr != 127.* && $node_addr != localhost ]] ||
        bad_input "--node-addr: found '$node_addr', expected this machine's address as the other nodes reach it"
}

# Several machines are as many nodes to the routers and byte counters too.
match_nodes() {
    local ranks_per_node
    [ "$nodes" -gt 1 ] || return 0
    ranks_per_node=$(config_value parallel.ranks_per_node)
    if [ "$ranks_per_node" = null ]; then
        overrides+=(--set "parallel.ranks_per_node=$workers")
    elif [ "$ranks_per_node" != "$workers" ]; then
        bad_input "parallel.ranks_per_node: found $ranks_per_node, expected $workers (--ranks-per-node) or null, with --nodes $nodes"
    fi
}

# Options for the launcher of one node, which is told everything. Sets `node_options`.
# shellcheck disable=SC2317,SC2329 # nodes.sh calls it
options_of_node() {
    node_options=(--ranks-per-node "$workers" --nodes "$nodes" --node-rank "$1" --master-addr "$master_addr" --node-addr "${addresses[$1]}"
        --port "$port" --log-dir "$log_dir" --stop-timeout "$stop_timeout" ${env_file:+--env-file "$env_file"} ${bench:+--bench "$bench"}
        ${bind_core:+--bind-core "$bind_core"} "$config" ${overrides[@]+"${overrides[@]}"})
    ! $generate || node_options+=(--generate)
    [ ${#further[@]} -eq 0 ] || node_options+=(-- "${further[@]}")
}

build_command() {
    local words # also a rank that there is not: msrun is to show the log of none
    rank_words
    command=(msrun "--worker_num=$total_ranks" "--local_worker_num=$workers" "--master_addr=$master_addr" "--master_port=$port"
        "--node_rank=$node_rank" --join=True "--log_dir=$log_dir" "--tail_worker_log=$total_ranks"
        ${bind_core:+"--bind_core=${bind_core/#auto/True}"} "$python" "${words[@]}")
}

show_command() {
    show_environment
    printf 'LOCMOE_NODE_ADDRESS=%q \\\nLOCMOE_LOG_DIR=%q \\\nLOCMOE_MESH_PORT=%s \\\n' "$node_addr" "$log_dir" "$port"
    printf 'LOCMOE_MESH_SECRET=<%s> \\\n' "$([ "$nodes" -eq 1 ] && echo random || echo given)"
    printf '%q ' "${command[@]}"
    printf '\n'
}

# Runs msrun in the background with the first rank's log on the terminal; its own messages go to msrun.log. Sets `status`.
run_job() {
    local bond tail_pid
    find_bond
    LOCMOE_JOB=$tag LOCMOE_LOG_DIR=$log_dir LOCMOE_MESH_PORT=$port LOCMOE_MESH_SECRET=$secret LOCMOE_NODE_ADDRESS=$node_addr \
        ${bond[@]+"${bond[@]}"} "${command[@]}" >"$log_dir/msrun.log" 2>&1 </dev/null &
    started=$!
    tail -n +1 -s 0.3 -F --pid="$started" "$log_dir/worker_$first_rank.log" 2>/dev/null &
    tail_pid=$!
    await_msrun
    wait "$tail_pid" || true
}

# Sets `status`. A signal ends the first wait before msrun ends.
await_msrun() {
    status=0
    wait "$started" || status=$?
    [ -n "$stop_at" ] || return 0
    while kill -0 "$started" 2>/dev/null; do
        mind_stop_timeout
        sleep 0.1
    done
    status=0
    wait "$started" || status=$?
}

# The rank and exit code of the process that msrun saw fail first; nothing if it tells of none.
# shellcheck disable=SC2317,SC2329 # job.sh calls it
process_failure() {
    local process code rank
    read -r process code < <(sed -n \
        's/.*Worker process \([0-9]*\) exit with exception. Error code: \(-\{0,1\}[0-9]*\).*/\1 \2/p' \
        "$log_dir/msrun.log") || true
    rank=$(awk -F '\t' -v pid="${process:-}" '$2 == pid { print $1 }' "$log_dir/workers.log" 2>/dev/null) || true
    [ -z "${code:-}" ] || echo "${rank:-?} $code"
}

parse_arguments "$@"
check_arguments
read_env_file
use_project
forget_ranks
use_nodes_file
note_cluster
check_nodes
total_ranks=$((nodes * workers)) first_rank=$((node_rank * workers)) local_ranks=$workers
export_environment
match_nodes
resolve_log_dir "$(! $over_ssh && [ "$nodes" -gt 1 ] && echo "node_$node_rank")"
choose_port_secret_tag
port=${port:-$free_port}
[ "$nodes" -eq 1 ] || secret=${LOCMOE_MESH_SECRET:-$secret}
if $over_ssh && $dry_run; then
    show_on_nodes options_of_node
    exit 0
fi
! $over_ssh || run_on_nodes "$log_dir" options_of_node
if $dry_run; then
    build_command
    show_command
    exit 0
fi
command -v msrun >/dev/null || bad_input "msrun not found; expected the environment that MindSpore is installed in to be active"
make_log_dir "${log_files[@]}"
build_command
end_job_on_exit
run_job
finish_job
