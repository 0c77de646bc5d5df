#!/usr/bin/env bash
# Trains any configuration with several ranks that msrun starts, on this machine or on several; or measures there: `pangu-sigma launch`.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"

become_launcher --launcher msrun "$@"
