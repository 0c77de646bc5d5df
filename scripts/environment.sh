# Sourced first by the scripts here: finds the project, whatever the caller's shell is like, and its Python environment.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts use what is set here

# The options, functions and variables of the calling shell that would change what a script does, or what its commands print.
unset BASH_ENV ENV CDPATH GREP_OPTIONS POSIXLY_CORRECT
unset -f cd pwd dirname readlink python python3
set +o noglob
shopt -u nullglob failglob dotglob
IFS=$' \t\n'

# Where the script is that sources this, through whatever link it was called. Folders keep the names by which the user called them,
# since the other nodes of a job may know no others.
own_path=${BASH_SOURCE[1]:-${BASH_SOURCE[0]}}
while [ -L "$own_path" ]; do
    link=$(readlink -- "$own_path")
    [[ $link == /* || $own_path != */* ]] || link=${own_path%/*}/$link
    own_path=$link
done
own_name=${own_path##*/}
scripts_folder=$(cd -- "$(dirname -- "$own_path")" && pwd)
[ "$scripts_folder/environment.sh" -ef "${BASH_SOURCE[0]}" ] || scripts_folder=$(dirname -- "${BASH_SOURCE[0]}")
repository=$(dirname -- "$scripts_folder")

case ${VIRTUAL_ENV:-} in
    '' | /*) ;;
    *) export VIRTUAL_ENV=$PWD/$VIRTUAL_ENV ;; # scripts change the working directory
esac

# What a launcher tells the ranks that it starts (RANK_VARIABLES of pangu_sigma/runtime/launch.py). Left over in a shell from another job, it
# would make whatever a script starts take itself for one of that job's ranks.
forget_ranks() {
    unset MS_ROLE MS_WORKER_NUM MS_NODE_ID MS_SCHED_HOST MS_SCHED_PORT RANK_ID RANK_SIZE DEVICE_ID LOCMOE_JOB LOCMOE_LOG_DIR LOCMOE_MESH_PORT
}

# For a script that starts jobs of its own, on this machine alone: also forgets what a user may tell a launcher (CLUSTER_VARIABLES).
forget_jobs() {
    forget_ranks
    unset RANK_TABLE_FILE LOCMOE_NODES LOCMOE_NODE_RANK LOCMOE_RANKS_PER_NODE LOCMOE_WORKERS_PER_NODE LOCMOE_MASTER_ADDRESS \
        LOCMOE_NODE_ADDRESS LOCMOE_PORT LOCMOE_MESH_SECRET
}

# Puts the active virtual environment, else the project's .venv, first in PATH; sets `python`, the name msrun is to start.
use_environment() {
    local environment=${VIRTUAL_ENV:-$repository/.venv}
    check_places
    if [ -x "$environment/bin/python" ]; then
        export VIRTUAL_ENV=$environment PATH=$environment/bin:$PATH
        use_allocator
    fi
    if command -v python >/dev/null; then
        python=python
    elif command -v python3 >/dev/null; then
        python=python3
    else
        echo "$own_name: error: no Python found; expected Python 3.9 to 3.12" >&2
        exit 2
    fi
}

# MindSpore's compiler allocates much. With mimalloc, which the extras `cpu` and `test` bring, a small run takes a quarter less processor
# time. It is named without its folder, since LD_PRELOAD knows no folder with a blank.
use_allocator() {
    local library
    [ -z "${LD_PRELOAD:-}" ] || return 0
    for library in "$VIRTUAL_ENV"/lib/python3*/site-packages/cmeel.prefix/lib/libmimalloc.so; do
        [ -e "$library" ] || continue
        export LD_PRELOAD=${library##*/} LD_LIBRARY_PATH=${library%/*}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        return
    done
}

check_places() {
    if [ -n "${VIRTUAL_ENV:-}" ] && [ ! -x "$VIRTUAL_ENV/bin/python" ] && [ ! -x "$VIRTUAL_ENV/bin/python3" ]; then
        echo "$own_name: error: environment variable VIRTUAL_ENV: found '$VIRTUAL_ENV', which has no bin/python; expected an active" \
            "virtual environment, or none (unset VIRTUAL_ENV)" >&2
        exit 2
    fi
    if [[ $repository == *:* ]]; then
        echo "$own_name: error: the project is in $repository; expected a folder without ':', which separates folders in PATH" >&2
        exit 2
    fi
}

# Makes .venv unless a virtual environment is active or .venv is there, then installs the project into it.
# Arguments: the extras to install, as in `test`.
make_environment() {
    if [ ! -e "$repository/setup.py" ]; then
        use_installed
        return
    fi
    check_places
    if [ -z "${VIRTUAL_ENV:-}" ] && [ ! -x "$repository/.venv/bin/python" ]; then
        local interpreter
        interpreter=$(_suitable_python) || return
        echo "making $repository/.venv with $interpreter"
        "$interpreter" -m venv "$repository/.venv"
    fi
    use_environment
    # Pip shows how far it is where there is much to wait for: MindSpore is a download of 0.8 GB. Else it has nothing to tell.
    local package quiet=()
    for package in "$VIRTUAL_ENV"/lib/python3*/site-packages/mindspore; do [ ! -e "$package" ] || quiet=(--quiet); done
    # By a name without a folder, of which pip would take brackets for extras; and into this environment, whatever pip's variables say.
    (cd -- "$repository" && env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX "$python" -m pip install ${quiet[@]+"${quiet[@]}"} \
        --disable-pip-version-check --editable ".${1:+[$1]}")
    use_allocator
}

# The project's code of this checkout, else what is installed; its environment, without making one.
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

# Becomes `pangu-sigma launch`. Arguments: its own.
become_launcher() {
    use_project
    exec "$python" -m pangu_sigma launch "$@"
}

# In a copy of the scripts without the project's code (pangu-sigma config --copy) that is to be installed already.
use_installed() {
    use_environment
    "$python" -c 'import pangu_sigma' 2>/dev/null && return
    echo "$own_name: error: $(command -v "$python") has no pangu-sigma, nor is its code in $repository; expected the environment that it" \
        "is installed in to be active" >&2
    exit 2
}

# The first interpreter that MindSpore has wheels for.
_suitable_python() {
    local candidate
    for candidate in python3 python python3.12 python3.11 python3.10 python3.9; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "$own_name: error: no suitable Python found; MindSpore has wheels for Python 3.9 to 3.12" >&2
    return 2
}
