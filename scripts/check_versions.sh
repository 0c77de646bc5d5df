#!/usr/bin/env bash
# Runs the unit tests with the oldest and the newest MindSpore that setup.py admits, each in an environment of its own.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"

versions=
folder=
dry_run=false
tests=()

usage() {
    cat <<TEXT
usage: bash scripts/check_versions.sh [OPTION ...] [-- PYTEST_ARGUMENT ...]

Makes a fresh virtual environment for each MindSpore version, installs the project and its test tools into it, and runs
pytest there (default: tests/unit). Every version is tried; returns 0 if all passed, 1 if one failed, 2 for bad input.

  --versions V,V   MindSpore versions (default: the oldest of setup.py's range, and the newest of it that pip finds)
  --folder D       keep the environments here; one that is there is used again (default: a new folder, removed at the end)
  --dry-run        show the commands; start nothing
  --help           show this text

A version takes about 4 GB of disk and some minutes to install.
TEXT
}

bad_input() {
    echo "$own_name: error: $* (see --help)" >&2
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
            --versions | --folder)
                [ $# -ge 2 ] || bad_input "$1 needs a value"
                if [ "$1" = --versions ]; then versions=$2; else folder=$2; fi
                shift 2
                ;;
            --)
                shift
                tests=("$@")
                return
                ;;
            *) bad_input "unknown argument $1; expected pytest's arguments after --" ;;
        esac
    done
}

# Sets `specifiers`: what to install of MindSpore for each version.
choose_versions() {
    local version range
    specifiers=()
    if [ -n "$versions" ]; then
        for version in ${versions//,/ }; do
            [[ $version =~ ^[0-9]+(\.[0-9]+)*(\.post[0-9]+)?$ ]] || bad_input "--versions: found '$version', expected versions, as in 2.7.0,2.10.0"
            specifiers+=("mindspore==$version")
        done
        return
    fi
    range=$(sed -n 's/^ *"\(mindspore>=[^"]*\)",.*/\1/p' "$repository/setup.py")
    [[ $range =~ ^mindspore\>=([0-9.]+),\<[0-9.]+$ ]] || bad_input "setup.py: found '$range', expected a range, as in mindspore>=2.7,<2.11"
    specifiers=("mindspore==${BASH_REMATCH[1]}" "$range")
}

# Shows a command, or runs it.
run() {
    if $dry_run; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# Installs and tests one version; the status is that of the first command that failed. Argument: what to install of MindSpore.
check() {
    local own=$folder/${1//[^a-z0-9.]/_}
    if [ ! -x "$own/bin/python" ]; then run "$interpreter" -m venv "$own" || return; fi
    run "$own/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${repository}[dev]" "$1" || return
    run env "VIRTUAL_ENV=$own" "PATH=$own/bin:$PATH" "PYTHONPATH=$repository" "$own/bin/python" -m pytest "${tests[@]}"
}

parse_arguments "$@"
forget_jobs
[ ${#tests[@]} -gt 0 ] || tests=(tests/unit)
choose_versions
interpreter=$(_suitable_python)
if [ -z "$folder" ]; then
    folder=$(mktemp -d "${TMPDIR:-/tmp}/check_versions.XXXXXX")
    trap 'rm -rf "$folder"' EXIT
fi
folder=$(realpath --canonicalize-missing "$folder")
cd "$repository"
failed=()
for specifier in "${specifiers[@]}"; do
    echo "== $specifier"
    check "$specifier" || failed+=("$specifier")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "$own_name: error: failed with ${failed[*]}" >&2
    exit 1
fi
