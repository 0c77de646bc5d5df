#!/usr/bin/env bash
# Trains as train_msrun.sh does, and starts the job again from its newest whole checkpoint when it fails.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
# shellcheck source=scripts/job.sh
source "$scripts_folder/job.sh"

max_restarts=5
back_off=10
longest_wait=300 # seconds
launcher=train_msrun.sh
arguments=() # the launcher's
running=
signal=

usage() {
    cat <<TEXT
usage: bash scripts/train_supervised.sh [OPTION ...] [LAUNCHER_OPTION ...] CONFIG [--set KEY.PATH=VALUE ...]

Trains CONFIG with the launcher. When the job fails, starts it again with checkpoint.resume=auto: from its newest whole checkpoint.
Bad input and a run that diverged, which would fail again, and a job that was told to end are not started again. Returns the last attempt's exit status.

  --max-restarts N      give up after so many restarts with no new checkpoint between them (default $max_restarts)
  --back-off S          seconds before the first of them; twice as long before each further one, up to $longest_wait (default $back_off)
  --launcher L          train_msrun.sh or train_rank_table.sh (default $launcher); see its --help for its options
  --help                show this text

CONFIG must have checkpoint.interval, without which there is nothing to resume from. Attempts that failed are also listed in
<train.output_dir>/restarts.log: time, status, seconds, newest step. With several machines use the launcher's --ssh.
TEXT
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --max-restarts | --back-off | --launcher)
                [ $# -ge 2 ] || bad_input "$1 needs a value"
                set_option "$1" "$2"
                shift 2
                ;;
            --max-restarts=* | --back-off=* | --launcher=*)
                set_option "${1%%=*}" "${1#*=}"
                shift
                ;;
            --dry-run | --generate | --bench | --bench=*) bad_input "$1: is not training; expected the launcher itself to be given it" ;;
            *)
                keep_argument "$@"
                shift "$kept"
                ;;
        esac
    done
}

set_option() {
    case $1 in
        --max-restarts) max_restarts=$2 ;;
        --back-off) back_off=$2 ;;
        --launcher) launcher=$2 ;;
    esac
}

# Keeps an argument of the launcher, with its value if that is a word of its own, and notes the configuration. Sets `kept`.
keep_argument() {
    kept=1
    case $1 in
        --set=*) overrides+=("${1#*=}") ;;
        --ssh | --*=*) ;;
        --*)
            [ $# -ge 2 ] || bad_input "$1 needs a value"
            kept=2
            [ "$1" != --set ] || overrides+=("$2")
            ;;
        *) config=$1 ;;
    esac
    arguments+=("${@:1:kept}")
}

check_arguments() {
    local override
    [ -n "$config" ] || bad_input "no configuration file given"
    [[ $max_restarts =~ ^(0|[1-9][0-9]{0,5})$ ]] || bad_input "--max-restarts: found '$max_restarts', expected a number from 0 to 999999"
    [[ $back_off =~ ^(0|[1-9][0-9]{0,3})$ ]] || bad_input "--back-off: found '$back_off', expected seconds from 0 to 9999"
    [[ $launcher == train_msrun.sh || $launcher == train_rank_table.sh ]] ||
        bad_input "--launcher: found '$launcher', expected train_msrun.sh or train_rank_table.sh"
    for override in ${overrides[@]+"${overrides[@]}"}; do
        [[ $override != checkpoint.resume=* ]] || bad_input "--set $override: given where restarts need checkpoint.resume=auto"
    done
}

# One value of the configuration, which the launcher checks for its number of ranks.
value_of() {
    "$python" - "$1" "$config" ${overrides[@]+"${overrides[@]}"} <<'PYTHON'
import sys
from functools import reduce
from locmoe_ops.errors import InputError
from pangu_sigma.config.load import load_config
key, path, *overrides = sys.argv[1:]
try:
    print(reduce(getattr, key.split("."), load_config(path, overrides)))
except InputError as error:
    print(f"pangu-sigma: error: {error}", file=sys.stderr)
    sys.exit(2)
PYTHON
}

# The step of the newest checkpoint; -1 if there is none.
newest_step() {
    local folder newest=-1
    for folder in "$output_dir"/checkpoints/step_*; do
        [[ ${folder##*/step_} =~ ^(0|[1-9][0-9]{0,17})$ ]] || continue
        [ "${folder##*/step_}" -le "$newest" ] || newest=${folder##*/step_}
    done
    echo "$newest"
}

# Asks the launcher to end, which ends its ranks; it is not started again. (What a script starts in the background is deaf to SIGINT.)
# shellcheck disable=SC2317,SC2329 # a trap calls it
end_launcher() {
    signal=$1
    [ -z "$running" ] || kill -TERM "$running" 2>/dev/null || true
}

# Runs the launcher to its end, whatever signals come. Sets `status`.
attempt() {
    bash "$scripts_folder/$launcher" --set checkpoint.resume=auto ${arguments[@]+"${arguments[@]}"} &
    running=$!
    while true; do
        status=0
        wait "$running" || status=$?
        kill -0 "$running" 2>/dev/null || break # else a signal ended the wait, not the launcher
    done
    running=
}

# When the run's summary was last written; empty if there is none.
summary_time() {
    stat -c %y "$output_dir/summary.json" 2>/dev/null || true
}

# Whether the last attempt, before which the summary was of time $1, diverged. It would again: the same steps give the same numbers.
has_diverged() {
    [ "$(summary_time)" != "$1" ] && grep -q '"status": "diverged"' "$output_dir/summary.json" 2>/dev/null
}

# Waits, but for no longer than until a signal comes.
pause() {
    local until=$((SECONDS + $1))
    while [ -z "$signal" ] && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
}

say() {
    echo "$own_name: $*" >&2
}

supervise() {
    local failures=0 wait=$back_off before=$1 after started_at summarised
    while true; do
        started_at=$SECONDS summarised=$(summary_time)
        attempt
        [ -z "$signal" ] && [ "$status" -ne 0 ] && [ "$status" -ne 2 ] && [ "$status" -ne 130 ] && [ "$status" -ne 143 ] || return 0
        after=$(newest_step)
        printf '%s\t%s\t%s\t%s\n' "$(date -u +%FT%TZ)" "$status" $((SECONDS - started_at)) "$after" >>"$output_dir/restarts.log" || true
        if has_diverged "$summarised"; then
            say "the run diverged, and would again: not started again"
            return 0
        fi
        if [ "$after" -gt "$before" ]; then failures=0 wait=$back_off before=$after; fi
        failures=$((failures + 1))
        if [ "$failures" -gt "$max_restarts" ]; then
            say "giving up: status $status, and no new checkpoint in $max_restarts restarts"
            return 0
        fi
        say "the job ended with status $status; again from $([ "$after" -ge 0 ] && echo "step $after" || echo "the start") in $wait s" \
            "(restart $failures of at most $max_restarts without a new checkpoint)"
        pause "$wait"
        [ -z "$signal" ] || return 0
        wait=$((wait * 2 < longest_wait ? wait * 2 : longest_wait))
    done
}

parse_arguments "$@"
check_arguments
use_project
forget_ranks
interval=$(value_of checkpoint.interval)
[ "$interval" -gt 0 ] || bad_input "checkpoint.interval is 0, which leaves nothing to resume from before the end; expected steps between checkpoints"
output_dir=$(value_of train.output_dir)
mkdir -p "$output_dir" 2>/dev/null || bad_input "cannot make $output_dir; expected a writable place"
trap 'end_launcher 130' INT
trap 'end_launcher 143' TERM HUP
supervise "$(newest_step)"
[ "$status" -ne 0 ] || exit 0 # told to end, the launcher has ended well
exit "${signal:-$status}"
