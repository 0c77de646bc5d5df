#!/usr/bin/env bash
# Installs the project with its test tools (into the active virtual environment, else .venv), then runs all checks.
# --quick: only the tests that compile no graph. Other arguments are passed on to pytest: scripts/test.sh tests/unit -k config
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"

case ${1:-} in
    -h | --help)
        echo "usage: bash scripts/test.sh [--quick | PYTEST ARGUMENT ...]"
        sed -n '2,3s/^# //p' -- "${BASH_SOURCE[0]}"
        exit 0
        ;;
esac

forget_jobs
make_environment dev
cd "$repository"
"$python" -m ruff check .
if [ $# -gt 0 ]; then
    "$python" -m mypy
    [ "$*" != --quick ] || set -- --quick --numprocesses 2 --dist loadfile tests/unit
    exec "$python" -m pytest "$@"
fi
# Types are checked beside the first tests.
report=$(mktemp)
"$python" -m mypy >"$report" 2>&1 &
types=$!
trap 'kill "$types" 2>/dev/null || true; rm -f -- "$report"' EXIT
# Three at a time on two cores, since some tests wait more than they compute. Folders of long tests come first.
status=0
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 25 \
    tests/distributed tests/end_to_end tests/numerics tests/unit || status=$?
wait "$types" || { status=1; cat -- "$report" >&2; }
exit "$status"
