#!/usr/bin/env bash
# Trains any configuration on this machine with several msrun workers.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workers=4
port=
log_dir=
dry_run=false
config=
overrides=()

usage() {
    cat <<'TEXT'
usage: bash scripts/train_msrun.sh [OPTION ...] CONFIG [--set KEY.PATH=VALUE ...]

Trains CONFIG on this machine with N msrun workers, shows rank 0's output, and returns the job's exit status
(0 success, 2 bad input, 1 any other failure, 130 interrupted). Nothing that it started outlives it.

  --workers N           ranks (default 4)
  --set KEY.PATH=VALUE  override one key of CONFIG; may be repeated
  --port P              port on which the ranks meet (default: a free one)
  --log-dir D           folder of the ranks' logs (default: <train.output_dir>/logs/launch_<n>)
  --dry-run             show the command and its environment; start nothing
  --help                show this text

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
            --workers | --port | --log-dir | --set)
                [ $# -ge 2 ] || bad_input "$1 needs a value"
                set_option "$1" "$2"
                shift 2
                ;;
            --workers=* | --port=* | --log-dir=* | --set=*)
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
    [ -n "$config" ] || bad_input "no configuration file given"
    [[ $workers =~ ^[1-9][0-9]{0,3}$ ]] || bad_input "--workers: found '$workers', expected a number from 1 to 9999"
    if [ -n "$port" ]; then
        [[ $port =~ ^[1-9][0-9]{3,4}$ ]] && [ "$port" -ge 1024 ] && [ "$port" -le 65535 ] ||
            bad_input "--port: found '$port', expected a number from 1024 to 65535"
    fi
}

set_option() {
    case $1 in
        --workers) workers=$2 ;;
        --port) port=$2 ;;
        --log-dir) log_dir=$2 ;;
        --set) overrides+=(--set "$2") ;;
    esac
}

# Checks the configuration before anything is started, and picks the log folder: one a launch, so that none is lost.
resolve_log_dir() {
    local output_dir launch=1
    output_dir=$("$python" -m pangu_sigma config "$config" ${overrides[@]+"${overrides[@]}"} \
        --ranks "$workers" --key train.output_dir)
    if [ -z "$log_dir" ]; then
        while [ -e "$output_dir/logs/launch_$launch" ]; do launch=$((launch + 1)); done
        log_dir=$output_dir/logs/launch_$launch
    fi
    # The ranks write there by this name whatever their working directory.
    [[ $log_dir == /* ]] || log_dir=$PWD/$log_dir
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
    command=(msrun "--worker_num=$workers" "--local_worker_num=$workers" --master_addr=127.0.0.1 "--master_port=$port"
        --join=True "--log_dir=$log_dir" "--tail_worker_log=$workers"
        "$python" -m pangu_sigma train "$config" ${overrides[@]+"${overrides[@]}"})
}

show_command() {
    local name
    for name in OMP_NUM_THREADS OPENBLAS_NUM_THREADS GLOG_v PYTHONUNBUFFERED PYTHONPATH; do
        printf '%s=%q \\\n' "$name" "${!name}"
    done
    printf 'LOCMOE_LOG_DIR=%q \\\nLOCMOE_MESH_PORT=%s \\\nLOCMOE_MESH_SECRET=<random> \\\n' "$log_dir" "$port"
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

# Runs msrun in the background with rank 0's log on the terminal; its own messages go to msrun.log. Sets `status`.
run_job() {
    mkdir -p "$log_dir" 2>/dev/null || bad_input "cannot make the log folder $log_dir; expected a writable place"
    rm -f "$log_dir/errors.log" "$log_dir/workers.log"
    echo "logs: $log_dir"
    # Should this script be killed outright, msrun dies with it, and the workers with msrun.
    local bond=()
    if setpriv --pdeathsig KILL true 2>/dev/null; then bond=(setpriv --pdeathsig KILL); fi
    LOCMOE_JOB=$tag LOCMOE_LOG_DIR=$log_dir LOCMOE_MESH_PORT=$port LOCMOE_MESH_SECRET=$secret \
        ${bond[@]+"${bond[@]}"} "${command[@]}" >"$log_dir/msrun.log" 2>&1 </dev/null &
    msrun_pid=$!
    tail -n +1 -s 0.3 -F --pid="$msrun_pid" "$log_dir/worker_0.log" 2>/dev/null &
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
    for ((rank = 0; rank < workers; rank++)); do
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
use_environment
export_environment
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
