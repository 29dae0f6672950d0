#!/usr/bin/env bash
# A connection that is cut: for a while, and for good.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hosts 3
two=10.77.0.1,10.77.0.2

# survives TEXT COMMAND COMMAND: sums go on after 5 s between these.
survives() {
  start_all $two 2 --seconds 7 --each 20000
  until_said 0 "numel 100003"
  sleep 0.2
  $2
  sleep 5
  $3
  local slowest
  for rank in 0 1; do until_said $rank "slowest"; done
  slowest=$(sed -n 's/.* slowest \([^ ]*\) s of .*/\1/p' "$folder"/out.0 | sort -n | tail -n 1)
  between 4.5 19 "$slowest" || die "$1: a sum must have waited for the cut, got $slowest s"
  good "$1: survived, a sum took $slowest s"
}

# fails RANK WORDS: that host's ranks end in time, by an error of these words.
fails() {
  local took
  bad "$1" "failed after [0-9.]* s: $2"
  # It takes 3.5 s. What is more is for a machine that has other work to do.
  for took in $(sed -n 's/.* failed after \([^ ]*\) s: .*/\1/p' "$folder/out.$1"); do
    between 2.9 7 "$took" || die "host $1 must fail within 3 to 7 s, got $took s"
  done
}
names() { fails "$1" "TimeoutError: .*waited 3000 ms for $2, got nothing"; }

down() { ip -n "cairn-$$-1" link set net0 down; }
up() { ip -n "cairn-$$-1" link set net0 up; }
survives "an interface that is down for 5 s" down up
# By itself this system would end connections that were silent for three seconds.
for rank in 0 1; do on $rank sysctl -q net.ipv4.tcp_retries2=3; done
survives "a cable that is out for 5 s" "pull 1" "plug 1"

start_all $two 2 --seconds 60 --each 3000
for rank in 0 1; do until_said $rank "numel 100003"; done
pull 1
# In which of the two levels the cut comes is chance, and so is who hears of it from whom.
for rank in 0 1; do fails $rank "(TimeoutError|CommError): .*rank"; done
plug 1
echo "two levels end in time when a host is cut off for good"

for list in $two $two,10.77.0.3; do
  last=$(($(tr ',' '\n' <<<"$list" | wc -l) - 1))
  start_all "$list" 1 --seconds 60 --each 3000
  for ((rank = 0; rank <= last; ++rank)); do until_said $rank "numel 100003"; done
  pull "$last"
  for ((rank = 0; rank < last; ++rank)); do names $rank "rank $last"; done
  names "$last" "ranks? [01](, 1)?"
  plug "$last"
  echo "host $last of $((last + 1)) cut off for good is named"
done
