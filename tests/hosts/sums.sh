#!/usr/bin/env bash
# Sums over two and three hosts.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hosts 3

start_all 10.77.0.1,10.77.0.2 1
good "a ring over two hosts" "of 2 by ring"
start_all 10.77.0.1,10.77.0.2 1 --numel 10000000
good "10 million elements over two hosts"
start_all 10.77.0.1,10.77.0.2 2
good "two levels: two ranks in each of two hosts" "of 4 by auto"
start_all 10.77.0.1,10.77.0.2 2 --backend ring
good "a ring of two ranks in each of two hosts" "of 4 by ring"
start_all 10.77.0.1,10.77.0.2,10.77.0.3 1
good "a ring over three hosts" "of 3 by ring"
start_all fd77::1,fd77::2 2
good "addresses of IPv6"

# torchrun's variables, set by hand.
for rank in 0 1; do
  on $rank env MASTER_ADDR=10.77.0.1 MASTER_PORT=29500 RANK=$rank LOCAL_RANK=0 WORLD_SIZE=2 \
    LOCAL_WORLD_SIZE=1 NODE_RANK=$rank CAIRN_SECRET=of-these-tests "$bin/hosts_reduce" \
    >"$folder/out.$rank" 2>&1 </dev/null &
  running[rank]=$!
done
good "variables set by hand" "of 2 by ring"

for rank in 0 1; do ip -n "cairn-$$-$rank" addr flush dev net0 scope global; done
for rank in 0 1; do ip -n "cairn-$$-$rank" addr add fd77::$((rank + 1))/64 dev net0 nodad; done
start_all fd77::1,fd77::2 1
good "hosts with IPv6 alone" "of 2 by ring"
