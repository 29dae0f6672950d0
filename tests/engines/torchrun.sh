#!/usr/bin/env bash
# `torchrun --no-python program`, with the torchrun of the environment that `./run setup --bench`
# makes, or of the PATH.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sum=$1

torchrun=${XDG_CACHE_HOME:-$HOME/.cache}/cairn-bench/bin/torchrun
[ -x "$torchrun" ] || torchrun=$(command -v torchrun) || skip "no torchrun here (./run setup --bench)"

expect torchelastic 2 "$(timeout 120 "$torchrun" --no-python --nproc-per-node 2 "$sum")"
expect_failure 120 "data: image 7 must be whole" \
  "$torchrun" --standalone --no-python --nproc-per-node 2 "$sum" --throw 1 --after 100
