# Sourced by the other scripts: finds, or makes, the Python environment that the project runs in.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Puts the active virtual environment, else the project's .venv, first in PATH; sets `python`, the name msrun is to start.
use_environment() {
    local environment=${VIRTUAL_ENV:-$repository/.venv}
    if [ -x "$environment/bin/python" ]; then
        export VIRTUAL_ENV=$environment PATH=$environment/bin:$PATH
    fi
    if command -v python >/dev/null; then
        python=python
    elif command -v python3 >/dev/null; then
        python=python3
    else
        echo "$(basename "$0"): error: no Python found; expected Python 3.9 to 3.12" >&2
        return 2
    fi
}

# Makes .venv unless a virtual environment is active or .venv is there, then installs the project into it.
# Arguments: the extras to install, as in `test`.
make_environment() {
    if [ -z "${VIRTUAL_ENV:-}" ] && [ ! -x "$repository/.venv/bin/python" ]; then
        local interpreter
        interpreter=$(_suitable_python) || return
        echo "making $repository/.venv with $interpreter"
        "$interpreter" -m venv "$repository/.venv"
    fi
    use_environment
    "$python" -m pip install --quiet --disable-pip-version-check --editable "$repository${1:+[$1]}"
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
    echo "$(basename "$0"): error: no suitable Python found; MindSpore has wheels for Python 3.9 to 3.12" >&2
    return 2
}
