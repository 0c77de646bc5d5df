# Sourced by train_msrun.sh and train_rank_table.sh, after environment.sh: the job's nodes, and starting the launcher on each of them over ssh.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # the launchers use what is set here, and this uses what environment.sh sets

# shellcheck source=scripts/job.sh
source "$scripts_folder/job.sh"

over_ssh=false
ssh_command="ssh -o BatchMode=yes -o ConnectTimeout=10"
secret= # that ranks on CPU prove to each other
node_options=()

own_end_s=15  # after a node's failure the others get this long to end by themselves, with a report of their own,
told_end_s=15 # and this long once they are told to end
fetch_s=60    # for the logs of one node

names=()        # of the nodes, node 0 first
addresses=()    # where they are reached; - if a name does not resolve
destinations=() # for ssh
is_own=()       # 1 if it is this machine
pairs=()        # rank:device of a rank table, separated by spaces

settings_to_pass=() # what the user set that matters on the other nodes too; what this script sets later is for this machine
for setting in VIRTUAL_ENV OMP_NUM_THREADS GLOG_v MS_SUBMODULE_LOG_v LOCMOE_ROUTER_FILES "${!HCCL_@}"; do
    [ -z "${!setting:-}" ] || settings_to_pass+=("$(printf 'export %s=%q &&' "$setting" "${!setting}")")
done

running=() # processes that stand for the launcher on the nodes where it has not ended
leashes=() # what keeps it running on the others
scratch=

# Arguments: those of `python -m pangu_sigma.runtime.nodes`.
list_nodes() {
    local listing place name address destination own ranks
    listing=$("$python" -m pangu_sigma.runtime.nodes "$@" 2>&1) || bad_input "$1: ${listing##*$'\n'}"
    while IFS=$'\t' read -r place name address destination own ranks; do
        names[place]=$name addresses[place]=$address destinations[place]=$destination is_own[place]=$own pairs[place]=$ranks
    done <<<"$listing"
}

# The place of this machine among the nodes, or nothing. Argument: the option that says which it is.
own_place() {
    local place found=()
    for place in "${!names[@]}"; do
        [ "${is_own[place]}" -eq 0 ] || found+=("$place")
    done
    [ ${#found[@]} -le 1 ] || bad_input "$1: not given; expected it, since several of the nodes are this machine (${found[*]})"
    echo "${found[*]}"
}

require_addresses() {
    local place
    for place in "${!names[@]}"; do
        [ "${addresses[place]}" != - ] || bad_input "node $place: the name ${names[place]} does not resolve; expected an address"
    done
}

# Sets `node_command` to the words that run this launcher on a node. Arguments: the node, then its options.
make_node_command() {
    node_command=(bash "$scripts_folder/$own_name" "${@:2}")
}

# The words that run a command elsewhere: there is no terminal, so nobody to ask for a password.
# Sets `remote_command`. Arguments: the node, then the command.
make_remote_command() {
    local place=$1 ssh_words=()
    shift
    read -ra ssh_words <<<"$ssh_command"
    remote_command=("${ssh_words[@]}" "${destinations[place]}"
        "${settings_to_pass[*]-} cd $(printf %q "$PWD") && exec $(printf '%q ' "$@")")
}

# Runs the launcher once on every node and returns the first failing node's status (130 interrupted). Shows what node 0
# prints; what the others print goes to <folder>/node_<R>.log, and their ranks' logs are fetched to <folder>/node_<R>.
# Arguments: the log folder; a function that sets `node_options` to those of the node it is given.
run_on_nodes() {
    local place folder=$1
    make_log_dir node_0.log node_1.log node_0 node_1 >/dev/null # which node 0 tells of its own
    folder=$log_dir
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/on_nodes.XXXXXX")
    trap 'end_nodes "$?"' EXIT
    trap 'exit 130' INT
    trap tell_nodes TERM HUP
    find_bond
    for place in "${!names[@]}"; do
        "$2" "$place"
        make_node_command "$place" "${node_options[@]}"
        if [ "$place" -eq 0 ]; then start_node 0; else start_node "$place" "$folder/node_$place.log"; fi
    done
    await_nodes "$folder"
    fetch_logs "$folder"
    exit "$status"
}

# Argument: the node; then the file for what it prints, unless that is shown.
start_node() {
    local place=$1 out=1 err=2 leash
    if [ $# -gt 1 ]; then
        exec {out}>"$2"
        err=$out
    fi
    if [ "${is_own[place]}" -eq 1 ]; then
        LOCMOE_MESH_SECRET=$secret ${bond[@]+"${bond[@]/KILL/TERM}"} "${node_command[@]}" </dev/null 1>&"$out" 2>&"$err" &
        running[place]=$!
    else
        make_remote_command "$place" bash "$scripts_folder/leashed.sh" "${node_command[@]}"
        mkfifo "$scratch/$place"
        (
            for leash in ${leashes[@]+"${leashes[@]}"}; do exec {leash}>&-; done
            exec ${bond[@]+"${bond[@]}"} "${remote_command[@]}" <"$scratch/$place" 1>&"$out" 2>&"$err"
        ) &
        running[place]=$!
        exec {leash}>"$scratch/$place"
        leashes[place]=$leash
        (printf '%s\n' "$secret" >&"$leash") || true # who reads it may have ended, of which await_nodes tells; the signal must not end us
    fi
    [ "$out" -eq 1 ] || exec {out}>&-
}

# Sets `status` to that of the first node that fails; returns when all have ended, or have had their time to.
await_nodes() {
    local place code end=
    status=0
    while [ ${#running[@]} -gt 0 ]; do
        for place in "${!running[@]}"; do
            kill -0 "${running[place]}" 2>/dev/null && continue
            code=0
            wait "${running[place]}" || code=$?
            unset "running[place]"
            [ "$code" -eq 0 ] && continue
            report_node "$place" "$code" "$1"
            [ "$code" -le 128 ] || [ "$code" -eq 130 ] || [ "$code" -eq 143 ] || code=1 # 255 is ssh's own
            [ "$status" -ne 0 ] || status=$code
        done
        [ "$status" -eq 0 ] || end=${end:-$((SECONDS + own_end_s))}
        [ -z "$end" ] || [ "$SECONDS" -le "$end" ] || return 0
        mind_stop_timeout
        sleep 0.1
    done
}

# Told to end: so are the nodes, which stop their ranks (see stop_ranks), and are awaited. Told twice: they end at once.
tell_nodes() {
    local place leash
    trap 'exit 143' TERM HUP
    stop_at=$((SECONDS + stop_timeout + told_end_s))
    for leash in ${leashes[@]+"${leashes[@]}"}; do exec {leash}>&-; done
    leashes=()
    for place in "${!running[@]}"; do
        [ "${is_own[place]}" -eq 0 ] || kill -TERM "${running[place]}" 2>/dev/null || true
    done
}

# Node 0 has shown its own error.
report_node() {
    local line
    [ "$1" -ne 0 ] || [ "$2" -eq 255 ] || return 0
    line=$(tail -n 1 "$3/node_$1.log" 2>/dev/null) || true
    echo "$own_name: error: node $1 (${names[$1]}) ended with status $2${line:+: $line}" >&2
}

# Ends what still runs on the nodes: those elsewhere by the end of their input, those here by a signal.
end_nodes() {
    local end=$((SECONDS + told_end_s)) place leash
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    for leash in ${leashes[@]+"${leashes[@]}"}; do exec {leash}>&-; done
    for place in "${!running[@]}"; do
        [ "${is_own[place]}" -eq 0 ] || kill -TERM "${running[place]}" 2>/dev/null
    done
    for place in "${!running[@]}"; do
        while kill -0 "${running[place]}" 2>/dev/null && [ "$SECONDS" -le "$end" ]; do sleep 0.1; done
        kill -KILL "${running[place]}" 2>/dev/null
    done
    rm -rf "$scratch"
    exit "$1"
}

# Where the nodes share no file system, the logs of their ranks are brought here.
fetch_logs() {
    local place
    for place in "${!names[@]}"; do
        [ "${is_own[place]}" -eq 0 ] && [ ! -e "$1/node_$place" ] || continue
        make_remote_command "$place" tar -C "$1" -cf - "node_$place"
        timeout "$fetch_s" "${remote_command[@]}" </dev/null 2>/dev/null | tar -C "$1" -xf - 2>/dev/null ||
            echo "$own_name: the logs of node $place stay on ${names[place]}, in $1/node_$place" >&2
    done
}

# What `run_on_nodes` would do, node by node. Argument: the function that sets `node_options`.
show_on_nodes() {
    local place
    for place in "${!names[@]}"; do
        "$1" "$place"
        make_node_command "$place" "${node_options[@]}"
        echo "# node $place: ${names[place]}"
        if [ "${is_own[place]}" -eq 0 ]; then
            make_remote_command "$place" bash "$scripts_folder/leashed.sh" "${node_command[@]}"
            printf '%q ' "${remote_command[@]}"
        else
            printf '%q ' "${node_command[@]}"
        fi
        printf '\n'
        LOCMOE_MESH_SECRET=$secret "${node_command[@]}" --dry-run | sed 's/^/  /'
    done
}
