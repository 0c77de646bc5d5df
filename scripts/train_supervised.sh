#!/usr/bin/env bash
# Trains as train_msrun.sh does, and starts the job again from its newest whole checkpoint when it fails: `pangu-sigma launch --supervise`.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"

become_launcher --supervise "$@"
