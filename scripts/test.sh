#!/usr/bin/env bash
# Installs the project with its test tools (into the active virtual environment, else .venv), then runs all checks.
# Arguments are passed on to pytest, as in: scripts/test.sh tests/unit -k config
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

case ${1:-} in
    -h | --help)
        echo "usage: bash scripts/test.sh [PYTEST ARGUMENT ...]"
        sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
esac

make_environment test
cd "$repository"
"$python" -m ruff check .
"$python" -m mypy
"$python" -m pytest "$@"
