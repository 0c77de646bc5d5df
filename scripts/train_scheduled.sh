#!/usr/bin/env bash
# One task of a scheduler's job, which has one a node: asks the scheduler for the nodes, and becomes `pangu-sigma launch` on one of them.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"

resolve_s=600 # pods get their names one after another
names=()      # of the nodes, in the scheduler's order
place=        # of this one among them

usage() {
    cat <<TEXT
usage: bash scripts/train_scheduled.sh [--resolve-timeout S] [LAUNCHER_OPTION ...] CONFIG [--set KEY.PATH=VALUE ...]

Starts pangu-sigma launch on this node of a scheduler's job, as the node that this says it is. Run it once on every node.

  Slurm                 inside srun with one task a node: SLURM_STEP_NODELIST (else SLURM_JOB_NODELIST) and SLURM_NODEID
  Volcano, ModelArts    in every container of the task worker: VC_WORKER_HOSTS and VC_TASK_INDEX
  --resolve-timeout S   seconds in which all nodes' names must resolve (default $resolve_s)
  --help                show this text

All else goes to pangu-sigma launch (--ranks-per-node M, --env-file F, --dry-run ...); see its --help. Ranks meet on
LOCMOE_PORT (default 29500) of the first node, and LOCMOE_MESH_SECRET must hold the same 64 hexadecimal digits on every node
(openssl rand -hex 32).
TEXT
}

bad_input() {
    echo "$own_name: error: $* (see --help)" >&2
    exit 2
}

ask_the_scheduler() {
    if [ -n "${SLURM_NODEID:-}" ]; then
        local list=${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}}
        [ -n "$list" ] || bad_input "SLURM_NODEID is set, but neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST; expected to run inside srun"
        mapfile -t names < <(scontrol show hostnames "$list")
        place=$SLURM_NODEID
    elif [ -n "${VC_WORKER_HOSTS:-}" ]; then
        IFS=, read -r -a names <<<"$VC_WORKER_HOSTS"
        place=${VC_TASK_INDEX:-}
    else
        bad_input "no scheduler: neither SLURM_NODEID nor VC_WORKER_HOSTS is set; expected one, or pangu-sigma launch itself"
    fi
    [[ ${#names[@]} -gt 0 && $place =~ ^[0-9]+$ && $place -lt ${#names[@]} ]] ||
        bad_input "the scheduler says that this is node '$place' of ${#names[@]}; expected a number from 0, below that of the nodes"
}

wait_for_names() {
    local name deadline=$((SECONDS + resolve_s))
    for name in "${names[@]}"; do
        until getent ahosts "$name" >/dev/null; do
            [ "$SECONDS" -lt "$deadline" ] || bad_input "the node's name $name does not resolve within $resolve_s s; expected an address for each"
            sleep 1
        done
    done
}

case ${1:-} in
    --help | -h)
        usage
        exit 0
        ;;
    --resolve-timeout)
        resolve_s=${2:-}
        [[ $resolve_s =~ ^[0-9]{1,5}$ ]] || bad_input "--resolve-timeout: found '$resolve_s', expected seconds from 0 to 99999"
        shift 2
        ;;
esac

ask_the_scheduler
[ ${#names[@]} -gt 1 ] || become_launcher --launcher msrun "$@"
wait_for_names
become_launcher --launcher msrun --nodes-file <(printf '%s\n' "${names[@]}") --node-rank "$place" --port "${LOCMOE_PORT:-29500}" "$@"
