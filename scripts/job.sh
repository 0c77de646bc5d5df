# Sourced by nodes.sh and train_supervised.sh, after environment.sh: what the ranks of a job on this machine have in common, however they are started.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # the launchers use what is set here, and this uses what environment.sh sets

config=
overrides=()
bench=
generate=false
further=() # arguments of what takes the place of training
env_file=
log_dir=
log_dir_of_node= # if it was chosen here: this node's folder inside it, `.` if there is one node
log_files=(errors.log workers.log worker_0.log scheduler.log msrun.log)
first_rank=0  # of those on this machine,
local_ranks=0 # which are so many
total_ranks=0
started= # set once there may be processes to end
stop_timeout=120
stop_at=  # when ranks that were told to stop are killed
bond=()
launch_folder= # of all nodes of this launch, unless --log-dir says where
made_folders=() # the log folder, and above it those that were not there either
hint= # added to messages about bad input: what of it the user may not have given

bad_input() {
    echo "$own_name: error: $*${hint:+; $hint} (see --help)" >&2
    exit 2
}

check_port() {
    [[ $1 =~ ^[1-9][0-9]{3,4}$ ]] && [ "$1" -ge 1024 ] && [ "$1" -le 65535 ] ||
        bad_input "--port: found '$1', expected a number from 1024 to 65535"
}

check_stop_timeout() {
    [[ $stop_timeout =~ ^[1-9][0-9]{0,4}$ ]] || bad_input "--stop-timeout: found '$stop_timeout', expected seconds from 1 to 99999"
}

# What takes the place of training, if anything does.
check_task() {
    [[ -z $bench || $bench == all-to-all || $bench == self-test ]] || bad_input "--bench: found '$bench', expected all-to-all or self-test"
    [ -z "$bench" ] || ! $generate || bad_input "--generate: given with --bench; expected one of them"
    [ -n "$bench" ] || $generate || [ ${#further[@]} -eq 0 ] ||
        bad_input "found '${further[0]}' after --, which --bench and --generate take; expected one of them"
}

check_secret() {
    [[ ${LOCMOE_MESH_SECRET:-} =~ ^[0-9a-fA-F]{64}$ ]] ||
        bad_input "environment variable LOCMOE_MESH_SECRET: $([ -n "${LOCMOE_MESH_SECRET:-}" ] && echo malformed || echo not set);" \
            "with $1 expected the same 64 hexadecimal digits on every node"
}

# CANN's set_env.sh, say: a shell that ssh starts has read no profile.
read_env_file() {
    [ -z "$env_file" ] && return
    [ -r "$env_file" ] || bad_input "--env-file: cannot read $env_file; expected a shell file that sets the environment"
    set +eu
    # shellcheck disable=SC1090 # the user's
    source "$env_file"
    set -eu
}

use_project() {
    if [ ! -d "$repository/pangu_sigma" ]; then
        use_installed
        return
    fi
    use_environment
    if [[ :${PYTHONPATH:-}: != ":$repository:"* ]]; then # first, lest another checkout that is in it be run
        export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
    fi
}

# The ranks share the cores; more threads than cores make every operator wait for the slowest.
export_environment() {
    local threads=$(($(nproc) / local_ranks))
    [ "$threads" -ge 1 ] || threads=1
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-$OMP_NUM_THREADS}
    set_log_level
    export PYTHONUNBUFFERED=1
}

# MindSpore's log level, as pangu_sigma/runtime/log_level.py has it, for msrun too.
set_log_level() {
    local of_device='{DEVICE:1}'
    if compgen -G '/dev/davinci[0-9]*' >/dev/null; then
        export GLOG_v=${GLOG_v:-2} MS_SUBMODULE_LOG_v=${MS_SUBMODULE_LOG_v:-$of_device}
    else
        export GLOG_v=${GLOG_v:-3}
    fi
}

# The value of one key of the configuration, which is checked as a whole.
config_value() {
    "$python" -m pangu_sigma config "$config" ${overrides[@]+"${overrides[@]}"} --ranks "$total_ranks" --key "$1"
}

# The words after python that make a process a rank. Sets `words`.
rank_words() {
    words=(-m pangu_sigma train)
    [ -z "$bench" ] || words=(-m pangu_sigma bench "$bench")
    ! $generate || words=(-m pangu_sigma generate)
    [[ $bench != self-test ]] || words=(-m pangu_sigma doctor --self-test)
    words+=("$config" ${overrides[@]+"${overrides[@]}"} ${further[@]+"${further[@]}"})
}

# Picks the log folder: one a launch, so that none is lost; on a shared file system the nodes of a launch find the same.
# Arguments: the folder of this node inside it; nothing if there is one node.
resolve_log_dir() {
    local own=$1 launch=1 output_dir
    output_dir=$(config_value train.output_dir)
    [ -n "$log_dir" ] || log_dir_of_node=${own:-.}
    if [ -z "$log_dir" ]; then
        while launch_is_taken "$output_dir/logs/launch_$launch" "$own"; do launch=$((launch + 1)); done
        log_dir=$output_dir/logs/launch_$launch launch_folder=$log_dir
    fi
    # The ranks write there by this name whatever their working directory.
    [[ $log_dir == /* ]] || log_dir=$PWD/$log_dir
    log_dir=$log_dir${own:+/$own}
}

launch_is_taken() {
    [ -e "$1" ] && { [ -z "$2" ] || [ -e "$1/$2" ] || [ -e "$1/msrun.log" ]; }
}

# A free port (below those the system hands out by itself, one of which a rank's own connection could take first), a
# secret for the ranks to prove to each other, and the job's tag. Sets `free_port`, `secret` and `tag`.
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
}

show_environment() {
    local name
    for name in OMP_NUM_THREADS OPENBLAS_NUM_THREADS GLOG_v MS_SUBMODULE_LOG_v PYTHONUNBUFFERED PYTHONPATH; do
        [ -z "${!name:-}" ] || printf '%s=%q \\\n' "$name" "${!name}"
    done
}

# What of the job the shell's environment decides, not the command line. Sets `hint`. Arguments: the variables that may.
note_environment() {
    local name set_there=()
    for name; do [ -z "${!name:-}" ] || set_there+=("$name=${!name}"); done
    [ ${#set_there[@]} -eq 0 ] || hint="from the environment: ${set_there[*]}; what is left over there, unset"
}

make_log_dir() {
    local file folder=$log_dir
    until [ -e "$folder" ]; do
        made_folders+=("$folder")
        folder=$(dirname -- "$folder")
    done
    mkdir -p "$(dirname -- "$log_dir")" 2>/dev/null || bad_input "cannot make the log folder $log_dir; expected a writable place"
    while ! mkdir "$log_dir" 2>/dev/null; do
        [ -d "$log_dir" ] || bad_input "cannot make the log folder $log_dir; expected a writable place"
        if [ -z "$log_dir_of_node" ]; then
            for file in "$@"; do
                [ ! -e "$log_dir/$file" ] || bad_input "--log-dir: $log_dir holds $file already; expected a new folder"
            done
            break
        fi
        log_dir= # another launch was quicker
        resolve_log_dir "${log_dir_of_node#.}"
    done
    echo "logs: $log_dir"
}

# Words to put before a command that is to end with this script, even if that is killed outright. Sets `bond`.
find_bond() {
    bond=()
    if setpriv --pdeathsig KILL true 2>/dev/null; then bond=(setpriv --pdeathsig KILL); fi
}

# Ends every process of this job, those in sessions of their own too, since they are found by the job's tag.
end_job() {
    local status=$? process found=true
    trap - EXIT
    trap '' INT TERM HUP
    [ -z "$stop_at" ] || exec 2>/dev/null # the shell would tell of what it kills here
    while [ -n "$started" ] && $found; do
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

end_job_on_exit() {
    trap end_job EXIT
    trap 'exit 130' INT
    trap stop_ranks TERM HUP
}

# Tells the ranks to stop: they end with the step that they are in, and a checkpoint. Told twice, or before all of them run, the job
# ends at once.
stop_ranks() {
    local pid
    trap 'exit 143' TERM HUP
    [ "$(wc -l 2>/dev/null <"$log_dir/workers.log" || true)" = "$local_ranks" ] || exit 143
    stop_at=$((SECONDS + stop_timeout))
    while read -r _ pid; do kill -TERM "$pid" 2>/dev/null || true; done <"$log_dir/workers.log"
}

# Ends the job if it was told to stop and its time is over.
mind_stop_timeout() {
    [ -z "$stop_at" ] || [ "$SECONDS" -lt "$stop_at" ] || exit 143
}

# Removes the log folder of a job that was refused before it had anything to show: its one line is on the terminal. What was in the
# folder before, or is of anybody else, stays.
remove_empty_logs() {
    [ "$status" -eq 2 ] && [ ${#made_folders[@]} -gt 0 ] && [ ! -s "$log_dir/worker_$first_rank.log" ] || return 0
    rm -f -- "$log_dir"/{errors,workers,msrun,scheduler}.log "$log_dir"/worker_*.log
    rmdir -- "${made_folders[@]}" 2>/dev/null || true
    # Of nodes that share the launch's folder, the last one to leave finds it empty, whichever made it.
    [ -z "$launch_folder" ] || rmdir -- "$launch_folder" "$(dirname -- "$launch_folder")" 2>/dev/null || true
}

# The job's exit status. Ranks that a signal has ended are no failure where they were told to stop.
finish_job() {
    [ "$status" -ne 0 ] || exit 0
    [ -z "$stop_at" ] || [ -s "$log_dir/errors.log" ] || exit 143
    report_failure
    exit "$status"
}

# The job's first failure, as `status<TAB>line`: from the ranks' own reports, else from what `process_failure` says.
first_failure() {
    if [ -s "$log_dir/errors.log" ]; then
        head -n 1 "$log_dir/errors.log" | cut -f 2-
        return
    fi
    local rank code
    read -r rank code < <(process_failure) || true
    if [ -z "${code:-}" ]; then
        printf '1\tpangu-sigma: error: the ranks could not be started, see %s\n' "$log_dir"
    elif [ "$code" -lt 0 ]; then
        printf '1\tpangu-sigma: error: rank %s: killed by signal %s, see %s\n' "$rank" "${code#-}" "$log_dir"
    else
        printf '1\tpangu-sigma: error: rank %s: ended with status %s, see %s\n' "$rank" "$code" "$log_dir"
    fi
}

# Ends every rank's log with that rank's own line, or with why it has none.
complete_logs() {
    local rank line
    for ((rank = first_rank; rank < first_rank + local_ranks; rank++)); do
        [ -e "$log_dir/worker_$rank.log" ] || continue
        line=$(awk -F '\t' -v rank="$rank" '$1 == rank { print $3; exit }' "$log_dir/errors.log" 2>/dev/null) || true
        [ -n "$line" ] || line="pangu-sigma: error: rank $rank: ended without a report of its own; first failure: $1"
        # A progress bar leaves its line open.
        [ -z "$(tail -c 1 "$log_dir/worker_$rank.log")" ] || line=$'\n'$line
        echo "$line" >>"$log_dir/worker_$rank.log"
    done
}

# Sets `status` to the job's and shows the first failure.
report_failure() {
    local line
    IFS=$'\t' read -r status line < <(first_failure)
    remove_empty_logs
    [ ! -d "$log_dir" ] || complete_logs "${line#pangu-sigma: error: }"
    echo "$line" >&2
}
