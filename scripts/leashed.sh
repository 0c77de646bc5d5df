#!/usr/bin/env bash
# Runs a command and ends it (SIGTERM) when standard input ends: so what ssh started ends with ssh.
# The first line of standard input becomes LOCMOE_MESH_SECRET, which a command line would show to everyone.
# Usage: leashed.sh COMMAND [ARGUMENT ...]
set -euo pipefail

IFS= read -r LOCMOE_MESH_SECRET || exit 143
export LOCMOE_MESH_SECRET
exec {leash}<&0
"$@" </dev/null {leash}<&- &
command=$!
{
    while read -r -u "$leash" _; do :; done
    kill -TERM "$command"
} >/dev/null 2>&1 &
watch=$!
trap 'kill -TERM "$command"' INT TERM HUP
status=0
wait "$command" || status=$?
# A signal ends the first wait, not the command.
if kill -0 "$command" 2>/dev/null; then
    status=0
    wait "$command" || status=$?
fi
kill "$watch" 2>/dev/null || true
exit "$status"
