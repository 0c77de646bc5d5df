#!/usr/bin/env bash
# Trains any configuration with one process for every device of an Ascend rank table, without msrun; or measures there.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
# shellcheck source=scripts/nodes.sh
source "$scripts_folder/nodes.sh"

rank_table=${RANK_TABLE_FILE:-}
server=
port=${LOCMOE_PORT:-}
master_addr=
dry_run=false

place=      # of this machine's server among those of the table
on_cpu=     # true or false
from_environment= # true if the table is the one that RANK_TABLE_FILE names
processes=() # by rank, those that have not ended
first_exit= # rank and code of the first that failed
grace_s=3   # a rank's failure leaves its peers this long to report theirs

usage() {
    cat <<TEXT
usage: bash scripts/train_rank_table.sh --rank-table F [OPTION ...] CONFIG [--set KEY.PATH=VALUE ...] [-- FURTHER_OPTION ...]

Trains CONFIG with a process for each device that the rank table F has on this machine, shows the output of its first
rank, and returns the job's exit status (0 success, 2 bad input, 1 any other failure, 130 interrupted). Nothing that it
started outlives it. Each process finds its place in RANK_TABLE_FILE, RANK_ID, RANK_SIZE and DEVICE_ID;
parallel.ranks_per_node follows the table.

  --rank-table F        the table, the same on every machine, as scripts/make_rank_table.py writes it (default:
                        \$RANK_TABLE_FILE)
  --server NAME         server_id of this machine (default: the server whose host_ip, or else server_id, is an address
                        or name of this machine; the only one)
  --set KEY.PATH=VALUE  override one key of CONFIG; may be repeated
  --log-dir D           folder of the ranks' logs (default: <train.output_dir>/logs/launch_<n>)
  --bench all-to-all    measure instead of training: pangu-sigma bench all-to-all, with what follows -- as its options
  --bench self-test     try devices, groups and links instead: pangu-sigma doctor --self-test
  --generate            continue prompts instead of training, with experts spread over the ranks: pangu-sigma generate,
                        with what follows -- as its options
  --env-file F          shell file to read first, such as CANN's set_env.sh (default: none)
  --stop-timeout S      told to end (SIGTERM), the job writes a checkpoint and returns 0; after S seconds without one it is
                        killed and returns 143 (default $stop_timeout)
  --ssh                 start it on all servers of the table from here, which need not be one of them; the folder that
                        this runs in, the project, F and CONFIG must have the same names everywhere
  --ssh-command C       how to reach them (default: $ssh_command)
  --dry-run             show the commands and their environment; start nothing
  --help                show this text

With several servers start it once on each, or once with --ssh; a server's logs go to a folder node_<R> of their own.

Needs an Ascend device for every rank, and CANN in the environment. With --set runtime.device=cpu the ranks run on CPU,
joined by TCP, whatever the table's device addresses are; then, with several servers and without --ssh, --port is
required, and LOCMOE_MESH_SECRET must hold the same 64 hexadecimal digits everywhere:

  --port P              port on which ranks on CPU meet (default: a free one on one server, else \$LOCMOE_PORT)
  --master-addr A       where rank 0's server is reached (default: its host_ip, or else server_id; one server: 127.0.0.1)

Uses the active virtual environment, else the project's .venv, else the Python in PATH. OMP_NUM_THREADS (default: cores
divided by ranks) and GLOG_v (MindSpore's log level, default 3: errors; on Ascend 2, with MS_SUBMODULE_LOG_v={DEVICE:1}, which
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
            --rank-table | --server | --port | --master-addr | --log-dir | --set | --bench | --ssh-command | --env-file | --stop-timeout)
                [ $# -ge 2 ] || bad_input "$1 needs a value"
                set_option "$1" "$2"
                shift 2
                ;;
            --rank-table=* | --server=* | --port=* | --master-addr=* | --log-dir=* | --set=* | --bench=* | --ssh-command=* | --env-file=* | --stop-timeout=*)
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

set_option() {
    case $1 in
        --rank-table) rank_table=$2 ;;
        --server) server=$2 ;;
        --port) port=$2 ;;
        --master-addr) master_addr=$2 ;;
        --log-dir) log_dir=$2 ;;
        --set) overrides+=(--set "$2") ;;
        --bench) bench=$2 ;;
        --generate) generate=$2 ;;
        --ssh-command) ssh_command=$2 ;;
        --env-file) env_file=$2 ;;
        --stop-timeout) stop_timeout=$2 ;;
        --ssh) over_ssh=$2 ;;
        --dry-run) dry_run=$2 ;;
    esac
}

check_arguments() {
    [ -n "$config" ] || bad_input "no configuration file given"
    [ -n "$rank_table" ] || bad_input "--rank-table: not given, nor RANK_TABLE_FILE set; expected an Ascend rank table"
    [ -z "$port" ] || check_port "$port"
    if $over_ssh && [ -n "$server" ]; then bad_input "--server: given with --ssh, which starts all servers"; fi
    check_task
    check_stop_timeout
}

# The ranks of all servers, and which of these this machine is.
use_rank_table() {
    local candidate devices
    [ -z "$from_environment" ] || hint="the table is RANK_TABLE_FILE's; expected --rank-table, or RANK_TABLE_FILE to name one"
    list_nodes --rank-table "$rank_table"
    hint=
    # The ranks read it by this name whatever their working directory.
    [[ $rank_table == /* ]] || rank_table=$PWD/$rank_table
    if [ ${#names[@]} -eq 1 ]; then addresses=(127.0.0.1); fi # one server's ranks meet there, whatever its own address
    master_addr=${master_addr:-${addresses[0]}}
    read -ra devices <<<"${pairs[0]}"
    local_ranks=${#devices[@]} total_ranks=$((${#devices[@]} * ${#names[@]}))
    ! $over_ssh || return 0
    for candidate in "${!names[@]}"; do
        [ -z "$server" ] || [ "${names[candidate]}" != "$server" ] || place=$candidate
    done
    if [ -n "$server" ]; then
        [ -n "$place" ] || bad_input "--server: found '$server', expected a server_id of $rank_table ($(IFS=, && echo "${names[*]}"))"
    elif [ ${#names[@]} -eq 1 ]; then
        place=0
    else
        place=$(own_place --server)
        [ -n "$place" ] || bad_input "--server: not given; expected it, since no server of $rank_table has an address of this machine"
    fi
    first_rank=$((place * local_ranks))
}

# Ranks run on CPU only if told to, lest a cluster whose driver is not loaded trains at a snail's pace.
find_devices() {
    local device pair
    device=$(config_value runtime.device)
    on_cpu=$([ "$device" = cpu ] && echo true || echo false)
    if $on_cpu || $dry_run || $over_ssh; then return; fi
    [ -z "${ASCEND_RT_VISIBLE_DEVICES:-}" ] || bad_input "environment variable ASCEND_RT_VISIBLE_DEVICES: found" \
        "'$ASCEND_RT_VISIBLE_DEVICES', expected it unset: the rank table names devices by their physical number"
    for pair in ${pairs[place]}; do
        [ -e "/dev/davinci${pair#*:}" ] || bad_input "rank ${pair%:*}: found no /dev/davinci${pair#*:}; expected an Ascend device with its" \
            "driver loaded, or --set runtime.device=cpu"
    done
}

check_meeting() {
    $on_cpu || return 0
    [ "$master_addr" != - ] || bad_input "--master-addr: not given; expected it, since the name of rank 0's server does not resolve"
    if $over_ssh; then
        [ -z "${LOCMOE_MESH_SECRET:-}" ] || check_secret --ssh
        require_addresses
    elif [ ${#names[@]} -gt 1 ]; then
        [ -n "$port" ] || bad_input "--port: not given; with ${#names[@]} servers expected the same port on every server"
        check_secret "${#names[@]} servers"
        [ "${addresses[place]}" != - ] || bad_input "server ${names[place]}: the name does not resolve; expected host_ip in $rank_table"
    fi
}

# A server is a node to the routers and byte counters, unless the configuration says that a group of its devices is.
match_nodes() {
    local ranks_per_node
    ranks_per_node=$(config_value parallel.ranks_per_node)
    [ "$ranks_per_node" != null ] || overrides+=(--set "parallel.ranks_per_node=$local_ranks")
}

# Options for the launcher of one server, which is told everything. Sets `node_options`.
# shellcheck disable=SC2317,SC2329 # nodes.sh calls it
options_of_node() {
    node_options=(--rank-table "$rank_table" --server "${names[$1]}" --log-dir "$log_dir" --stop-timeout "$stop_timeout" ${env_file:+--env-file "$env_file"}
        ${bench:+--bench "$bench"})
    ! $on_cpu || node_options+=(--port "$port" --master-addr "$master_addr")
    node_options+=("$config" ${overrides[@]+"${overrides[@]}"})
    ! $generate || node_options+=(--generate)
    [ ${#further[@]} -eq 0 ] || node_options+=(-- "${further[@]}")
}

# What a process of the job is told, besides what only its rank decides. Sets `settings`.
make_settings() {
    settings=("RANK_TABLE_FILE=$rank_table" "RANK_SIZE=$total_ranks" "LOCMOE_LOG_DIR=$log_dir")
    ! $on_cpu || settings+=("LOCMOE_MASTER_ADDRESS=$master_addr" "LOCMOE_NODE_ADDRESS=${addresses[place]}" "LOCMOE_MESH_PORT=$port")
}

show_commands() {
    local pair
    show_environment
    printf '%q \\\n' "${settings[@]}"
    ! $on_cpu || printf 'LOCMOE_MESH_SECRET=<%s> \\\n' "$([ ${#names[@]} -eq 1 ] && echo random || echo given)"
    for pair in ${pairs[place]}; do
        printf 'RANK_ID=%s DEVICE_ID=%s %q ' "${pair%:*}" "${pair#*:}" "$python"
        printf '%q ' "${words[@]}"
        printf '>%q\n' "$log_dir/worker_${pair%:*}.log"
    done
}

# Starts the ranks in the background, with the first one's log on the terminal. Sets `status`.
run_job() {
    local pair rank tail_pid
    find_bond
    started=true
    export LOCMOE_JOB=$tag LOCMOE_MESH_SECRET=$secret
    for pair in ${pairs[place]}; do
        rank=${pair%:*}
        env "${settings[@]}" "RANK_ID=$rank" "DEVICE_ID=${pair#*:}" ${bond[@]+"${bond[@]}"} "$python" "${words[@]}" \
            >"$log_dir/worker_$rank.log" 2>&1 </dev/null &
        processes[rank]=$!
    done
    export -n LOCMOE_JOB # the helpers below are not of the job
    tail -n +1 -s 0.3 -F --pid="${processes[first_rank]}" "$log_dir/worker_$first_rank.log" 2>/dev/null &
    tail_pid=$!
    await_ranks 2>/dev/null # where the shell would tell of a process that a signal ended
    wait "$tail_pid" || true
}

# Returns when all ranks have ended: by themselves, or, a moment after the first failure, because they were made to.
await_ranks() {
    local rank code end=
    status=0
    while [ ${#processes[@]} -gt 0 ]; do
        for rank in "${!processes[@]}"; do
            kill -0 "${processes[rank]}" 2>/dev/null && continue
            code=0
            wait "${processes[rank]}" || code=$?
            unset "processes[rank]"
            [ "$code" -eq 0 ] && continue
            [ "$code" -le 128 ] || code=$((128 - code))
            first_exit=${first_exit:-$rank $code} status=1 end=${end:-$((SECONDS + grace_s))}
        done
        if [ -n "$end" ] && [ "$SECONDS" -ge "$end" ]; then
            kill -KILL ${processes[@]+"${processes[@]}"} 2>/dev/null || true
        fi
        mind_stop_timeout
        sleep 0.1
    done
}

# shellcheck disable=SC2317,SC2329 # job.sh calls it
process_failure() {
    echo "$first_exit"
}

parse_arguments "$@"
[ "$rank_table" != "${RANK_TABLE_FILE:-}" ] || from_environment=true
check_arguments
read_env_file
use_project
forget_ranks
use_rank_table
export_environment
match_nodes
find_devices
check_meeting
resolve_log_dir "$(! $over_ssh && [ ${#names[@]} -gt 1 ] && echo "node_$place")"
choose_port_secret_tag
port=${port:-$free_port}
[ ${#names[@]} -eq 1 ] || secret=${LOCMOE_MESH_SECRET:-$secret}
if $over_ssh && $dry_run; then
    show_on_nodes options_of_node
    exit 0
fi
! $over_ssh || run_on_nodes "$log_dir" options_of_node
rank_words
if $dry_run; then
    make_settings
    show_commands
    exit 0
fi
make_log_dir "${log_files[@]}"
make_settings
end_job_on_exit
run_job
finish_job
