#!/usr/bin/env bash
# Sums over wires that lose, delay and dawdle.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hosts 2
[ -c /dev/net/tun ] || skip "no /dev/net/tun here, by which wires are made bad"

# wire TEXT DELAY_MS LOST_OF_1000 KBIT_PER_S WORKERS [ARGUMENT...]: the program on 10.79.0.1 and
# 10.79.0.2, which this wire joins.
wire() {
  local what=$1 rank
  mkfifo "$folder/wire"
  "$bin/hosts_wire" "cairn-$$-0" "cairn-$$-1" "$2" "$3" "$4" <"$folder/wire" >"$folder/wire.out" 2>&1 &
  running[9]=$!
  exec 9>"$folder/wire"
  until grep -q ready "$folder/wire.out"; do
    kill -0 "${running[9]}" 2>/dev/null || skip "no wires here: $(cat "$folder/wire.out")"
    sleep 0.05
  done
  for rank in 0 1; do
    ip -n "cairn-$$-$rank" addr add 10.79.0.$((rank + 1))/24 dev wire0
    ip -n "cairn-$$-$rank" link set wire0 up
  done
  start_all 10.79.0.1,10.79.0.2 "${@:5}"
  for rank in 0 1; do wait "${running[rank]}" || die "$what: must end well"; done
  unset "running[0]" "running[1]"
  exec 9>&-
  rm "$folder/wire"
  good "$what"
}

wire "one packet of a hundred lost" 0 10 0 1 --numel 1000000
wire "50 ms of delay" 50 0 0 1
wire "losses and a delay, two ranks in each host" 20 10 0 2
wire "1 Mbit/s" 5 0 1000 1 --numel 10000
