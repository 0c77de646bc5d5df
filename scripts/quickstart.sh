#!/usr/bin/env bash
# From a bare machine to three trained routers side by side.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"

config=configs/quickstart.yaml
output=runs/quickstart
samples=data/samples
routers=(hash switch locmoe)
wanted_domains=(en code) # a node each
substitutes=(zh)         # for one whose text could not be fetched
domains=()               # those that are trained on
declare -A prompts=([en]="My fellow" [zh]="话说" [code]="def main(")
sample_tokens=48
workers=2
fresh=false
overrides=()

usage() {
    cat <<'TEXT'
usage: bash scripts/quickstart.sh [OPTION ...]

Installs the project (into the active virtual environment, else .venv), fetches
a few MB of English, Chinese and code, trains a tokenizer, writes MindRecord,
and trains configs/quickstart.yaml on 2 msrun workers, which play two nodes of
a domain each, once with each router (hash, switch, locmoe). The routers take
turns: half of the steps, then a quarter in reverse order, then a quarter, so
that a machine whose speed drifts favours none. Prints how they compare, and
lets the last model write a text of each domain. Runs go to
runs/quickstart/<router>, the comparison to report.html and summary.json in
runs/quickstart. Run again, it resumes where it was interrupted and trains
nothing twice; with other options or data it trains anew, and the earlier runs
are kept in runs/quickstart_<n>.

  --steps N             optimizer steps of each run, the first fifth of them
                        warm-up (default: as in the configuration)
  --set KEY.PATH=VALUE  override one key of the configuration for all routers;
                        may be repeated
  --fresh               train all routers anew, even if they are finished
  --help                show this text

Exit status: 0 success, 2 bad input, else that of the step that failed. Needs
Python 3.9 to 3.12 with pip, 2 cores, 10 GB of memory and 4 GB of disk.
TEXT
}

bad_input() {
    echo "quickstart.sh: error: $* (see --help)" >&2
    exit 2
}

parse_arguments() {
    local given=()
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --fresh)
                fresh=true
                shift
                ;;
            --steps=* | --set=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
            --steps)
                [[ ${2:-} =~ ^[1-9][0-9]{0,8}$ ]] || bad_input "--steps: found '${2:-}', expected a number of at least 1"
                overrides+=(--set "train.steps=$2" --set "optimizer.warmup_steps=$(($2 / 5))"
                    --set "checkpoint.interval=$((($2 + 3) / 4))")
                shift 2
                ;;
            --set)
                [ $# -ge 2 ] || bad_input "--set needs a value"
                given+=(--set "$2")
                shift 2
                ;;
            *) bad_input "unknown argument $1" ;;
        esac
    done
    overrides+=(${given[@]+"${given[@]}"})
}

announce() {
    printf '\n== %s\n' "$*"
}

# Fetches what can be fetched, and takes two domains of it, so that each node has one of its own.
fetch_text() {
    "$python" -m pangu_sigma.data.samples "$samples"
    local domain sources=
    for domain in "${wanted_domains[@]}" "${substitutes[@]}"; do
        if [ ! -d "$samples/$domain" ] || [ ${#domains[@]} -eq ${#wanted_domains[@]} ]; then continue; fi
        domains+=("$domain")
        sources+="${sources:+, }$domain: $samples/$domain"
    done
    if [ "${domains[*]}" = "${wanted_domains[*]}" ]; then return; fi
    echo "continuing with: ${domains[*]}"
    overrides=(--set "data.prepare.sources={$sources}" ${overrides[@]+"${overrides[@]}"})
    if [ ${#domains[@]} -eq 1 ]; then
        echo "both nodes read the same domain: there is little for a router to keep near"
        overrides=(--set data.placement=shuffled ${overrides[@]+"${overrides[@]}"})
    fi
}

# Runs stand only while nothing they come from has changed: configuration, options, data. Others are put aside, not lost.
put_outdated_runs_aside() {
    local settings aside name number=1 made=()
    settings=$(pangu_sigma config --ranks "$workers" && cat "$(pangu_sigma config --ranks "$workers" --key data.path)/manifest.json")
    if ! $fresh && [ "$settings" == "$(cat "$output/settings" 2>/dev/null)" ]; then return; fi
    if [ -e "$output/settings" ]; then
        grep -q '"format": "pangu-sigma data"' "$output/settings" ||
            bad_input "$output/settings is there, and this script did not write it; expected it moved away"
        for name in settings summary.json report.html prompts.jsonl "${routers[@]}"; do
            [ ! -e "$output/$name" ] || made+=("$output/$name")
        done
        while [ -e "${output}_$number" ]; do number=$((number + 1)); done
        aside=${output}_$number
        mkdir "$aside"
        mv -- "${made[@]}" "$aside"
        echo "the earlier runs are now in $aside"
    fi
    mkdir -p "$output"
    printf '%s\n' "$settings" >"$output/settings"
}

# A command of the project on this configuration: pangu_sigma COMMAND [OPTION ...]
pangu_sigma() {
    "$python" -m pangu_sigma "$1" "$config" ${overrides[@]+"${overrides[@]}"} "${@:2}"
}

# Trains with one router until a step; what was compiled for the turn before is taken from there.
train() {
    local router=$1 last_step=$2 status=0 bond=()
    # Should this script be killed, the launcher is told to end, and ends its workers.
    if setpriv --pdeathsig TERM true 2>/dev/null; then bond=(setpriv --pdeathsig TERM); fi
    PANGU_SIGMA_COMPILE_CACHE=$output/graphs ${bond[@]+"${bond[@]}"} bash "$scripts_folder/train_msrun.sh" \
        --ranks-per-node "$workers" "$config" ${overrides[@]+"${overrides[@]}"} --set "moe.router.type=$router" \
        --set "train.output_dir=$output/$router" --set "train.stop_after=$last_step" --set checkpoint.resume=auto || status=$?
    if [ "$status" -ne 0 ]; then
        [ "$status" -eq 130 ] || echo "quickstart.sh: error: training with router $router failed (status $status)" >&2
        exit "$status"
    fi
}

# The routers by turns, to and fro. A turn ends at a checkpoint, from which the next one resumes.
train_by_turns() {
    local steps interval router back=()
    steps=$(pangu_sigma config --ranks "$workers" --key train.steps)
    interval=$(pangu_sigma config --ranks "$workers" --key checkpoint.interval)
    if [ "$interval" = null ] || [ "$interval" -eq 0 ]; then interval=$steps; fi
    for router in "${routers[@]}"; do back=("$router" ${back[@]+"${back[@]}"}); done
    take_turn $((steps / 2 / interval * interval)) "${routers[@]}"
    take_turn $((steps * 3 / 4 / interval * interval)) "${back[@]}"
    take_turn "$steps" "${routers[@]}"
}

# Trains the routers that are named, in this order, to the same step, if they are not there yet.
take_turn() {
    local last_step=$1 router
    for router in "${@:2}"; do
        if [ -e "$output/$router/summary.json" ] || [ "$(reached "$router")" -ge "$last_step" ]; then continue; fi
        announce "Training with router $router, to step $last_step"
        train "$router" "$last_step"
    done
}

# The last step in a router's metrics, 0 where there is none.
reached() {
    local last
    last=$(tail -n 1 "$output/$1/metrics.jsonl" 2>/dev/null) || last=
    if [[ $last =~ \"progress/step\":\ *([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo 0; fi
}

compare() {
    local router folders=()
    for router in "${routers[@]}"; do folders+=("$output/$router"); done
    "$python" -m pangu_sigma summary "${folders[@]}" --output "$output/summary.json"
    echo
    "$python" -m pangu_sigma report "${folders[@]}" --output "$output/report.html"
}

# A text of each domain, drawn from the last router's model (generate's defaults), by one process.
show_samples() {
    local domain
    for domain in "${domains[@]}"; do
        printf '{"prompt": "%s", "domain": "%s"}\n' "${prompts[$domain]}" "$domain"
    done >"$output/prompts.jsonl"
    "$python" -m pangu_sigma generate "$output/${routers[-1]}/config.yaml" --prompt-file "$output/prompts.jsonl" \
        --max-new-tokens "$sample_tokens"
}

# What to type next, in the environment that this script used.
show_next() {
    local run=$output/${routers[-1]} environment=${VIRTUAL_ENV:-}
    echo "took $((SECONDS / 60)) min $((SECONDS % 60)) s after installation; next:"
    [ -z "$environment" ] || printf '  source %q\n' "${environment#"$PWD"/}/bin/activate"
    cat <<TEXT
  pangu-sigma generate $run --domain ${domains[0]} --prompt "${prompts[${domains[0]}]}"
  pangu-sigma eval $run
  pangu-sigma compare configs/compare/smoke.yaml
Your own text: docs/tutorial.md
TEXT
}

parse_arguments "$@"
forget_jobs
cd "$repository"
announce "Installing (MindSpore alone is a download of 0.8 GB)"
make_environment cpu
SECONDS=0
announce "Fetching text"
fetch_text
announce "Preparing data"
pangu_sigma prepare
put_outdated_runs_aside
train_by_turns
announce "Comparison"
compare
announce "What the model with router ${routers[-1]} writes"
show_samples
announce "Done"
show_next
