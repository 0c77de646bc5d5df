#!/usr/bin/env bash
# Trains any configuration with one process for every device of an Ascend rank table, without msrun; or measures there: `pangu-sigma launch`.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"

become_launcher --launcher rank-table "$@"
