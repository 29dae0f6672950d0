#!/usr/bin/env bash
# How hosts find each other, where they listen, and what they say of one that is missing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hosts 3
two=10.77.0.1,10.77.0.2 three=10.77.0.1,10.77.0.2,10.77.0.3

# within LIMIT: since `began`, in seconds.
within() {
  local took
  took=$(awk -v from="$began" -v to="$(date +%s.%N)" 'BEGIN { print to - from }')
  between 0 "$1" "$took" || die "it must take below $1 s, got $took s"
}

# listens HOST: on which addresses, without ports.
listens() { on "$1" ss -Htln | awk '{ sub(/:[0-9]*$/, "", $4); print $4 }' | sort -u | xargs; }

began=$(date +%s.%N)
start $three 0 2 --timeout 4000
start $three 1 2 --timeout 4000
for rank in 0 1; do
  bad $rank "tcp_store: all ranks must join within 4 s, got 4/6 joined, missing \[4, 5\]"
done
within 8
echo "a host that is missing is named"

began=$(date +%s.%N)
start $three 1 1 --timeout 4000
bad 1 "connect: 10.77.0.1 port 29440 must answer within 4 s, got: "
within 8
echo "the first host is named when it is missing"

start_all no-such-host.invalid,10.77.0.2 1 --timeout 5000
for rank in 0 1; do bad $rank "resolve: host 'no-such-host.invalid' must have an address, got: "; done
echo "a name that nobody knows is told"

for rank in 0 1 2; do
  printf '%s\n' "127.0.0.1 localhost" "10.77.0.1 first" "10.77.0.2 second" >"$folder/names.$rank"
done
start_all first,second 2
good "hosts by their names"
# As Debian writes a host's own name.
printf '%s\n' "127.0.0.1 localhost" "127.0.1.1 first" >"$folder/names.0"
start first,second 0 1 --timeout 4000
bad 0 "address of the first host must be one that other hosts reach, got first, which is 127.0.1.1 "
rm "$folder"/names.*
echo "a name that is loopback on its own host is told"

start 10.77.0.1 0 2 --seconds 2
until_said 0 "numel 100003"
[ "$(listens 0)" = 127.0.0.1 ] || die "one host must listen on loopback alone, got $(listens 0)"
good "one host listens on loopback alone"

start_all $two 1 --seconds 2
until_said 0 "numel 100003"
[ "$(listens 0)$(listens 1)" = 10.77.0.1 ] || die "the store must listen on the first host's \
address alone, got $(listens 0) and $(listens 1)"
good "two hosts listen on the address that is given alone"

start_all $two 1 --seconds 2 --bind 0.0.0.0
until_said 0 "numel 100003"
[ "$(listens 0)" = 0.0.0.0 ] || die "the store must listen on all addresses, got $(listens 0)"
good "all addresses are listened on when that is asked for"

# A second network, which the routes do not choose by themselves.
for rank in 0 1; do ip -n "cairn-$$-$rank" addr add 10.78.0.$((rank + 1))/24 dev net0; done
start_all 10.78.0.1,10.78.0.2 1 --seconds 2 --bind 10.78.0.1
until_said 0 "numel 100003"
connected=$(on 1 ss -Htn state established | awk '{ print $3; print $4 }' | grep -c '^10\.78\.0\.')
[ "$connected" -eq 4 ] || die "both connections must go by the second network, got $connected ends"
good "of two networks the one of the first host's address is taken"
