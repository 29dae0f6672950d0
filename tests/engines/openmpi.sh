#!/usr/bin/env bash
# `mpirun -n 4 program`, with the real Open MPI.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sum=$1

command -v mpirun >/dev/null || skip "no mpirun here (Debian: openmpi-bin)"
mpirun --version 2>&1 | grep -q "Open MPI" || skip "this mpirun is not Open MPI's"
mpi=(mpirun --oversubscribe)
if [ "$(id -u)" -eq 0 ]; then mpi+=(--allow-run-as-root); fi

expect mpi 4 "$(timeout 60 "${mpi[@]}" -n 4 "$sum")"
# Two jobs at once keep apart.
other=$(mktemp)
trap 'rm -f "$other"' EXIT
timeout 60 "${mpi[@]}" -n 2 "$sum" --rounds 50 >"$other" &
expect mpi 3 "$(timeout 60 "${mpi[@]}" -n 3 "$sum" --backend ring --rounds 50)"
wait $!
expect mpi 2 "$(cat "$other")"
# One process is alone, whoever starts it.
expect single 1 "$(timeout 60 "${mpi[@]}" -n 1 "$sum")"
expect_failure 20 "rank 1" "${mpi[@]}" -n 3 "$sum" --kill 1 --after 100
