# shellcheck shell=bash
# What the tests over several hosts share. Hosts 0, 1, … are network namespaces, each with an
# interface net0 and the addresses 10.77.0.(rank + 1) and fd77::(rank + 1), on one switch. They are
# gone when the script ends.
bin=$1

skip() {
  echo "host tests: skipped, $1"
  exit 0
}

die() {
  echo "host tests: $1" >&2
  exit 1
}

folder=$(mktemp -d /tmp/cairn-hosts-XXXXXX)
running=() # processes of the case, by rank of their host
end() {
  local status=$? space
  set +e
  end_case
  for space in "${spaces[@]}"; do ip netns del "$space"; done
  if [ $status -ne 0 ]; then tail -n 30 "$folder"/out.* >&2 || true; fi
  rm -rf "$folder"
}

end_case() {
  if [ ${#running[@]} -eq 0 ]; then return 0; fi
  kill -KILL "${running[@]}" 2>/dev/null || true
  wait "${running[@]}" 2>/dev/null || true
  running=()
}

spaces=()
trap end EXIT
trap 'exit 130' INT TERM

# Of scripts that could not even do that.
sweep() {
  local space pid
  for space in $(ip netns list | sed -n 's/^\(cairn-[0-9]*-[a-z0-9]*\).*/\1/p'); do
    pid=${space#cairn-}
    if ! kill -0 "${pid%-*}" 2>/dev/null; then ip netns del "$space"; fi
  done
}

add_space() {
  ip netns add "cairn-$$-$1" 2>"$folder/why" || skip "no network namespaces here: $(cat "$folder/why")"
  spaces+=("cairn-$$-$1")
  ip -n "cairn-$$-$1" link set lo up
}

# on HOST COMMAND...
on() {
  local host=$1
  shift
  ip netns exec "cairn-$$-$host" "$@"
}

# hosts COUNT: makes them.
hosts() {
  local rank switch=cairn-$$-switch
  [ "$(id -u)" -eq 0 ] || skip "network namespaces are made by root alone"
  command -v ip >/dev/null || skip "no ip here (Debian: iproute2)"
  sweep
  add_space switch
  ip -n "$switch" link add bridge0 type bridge 2>"$folder/why" ||
    skip "no bridges here: $(cat "$folder/why")"
  ip -n "$switch" link set bridge0 up
  for ((rank = 0; rank < $1; ++rank)); do
    add_space $rank
    ip link add net0 netns "cairn-$$-$rank" type veth peer name "port$rank" netns "$switch"
    ip -n "$switch" link set "port$rank" master bridge0 up
    ip -n "cairn-$$-$rank" addr add 10.77.0.$((rank + 1))/24 dev net0
    ip -n "cairn-$$-$rank" addr add fd77::$((rank + 1))/64 dev net0 nodad
    ip -n "cairn-$$-$rank" link set net0 up
  done
}

# pull RANK, plug RANK: the cable of this host, at the switch.
pull() { ip -n "cairn-$$-switch" link set "port$1" down; }
plug() { ip -n "cairn-$$-switch" link set "port$1" up; }

# start LIST RANK WORKERS [ARGUMENT...]: the program on one host of the list, by `cairn launch`.
# Where there is a file names.RANK, it is that host's /etc/hosts.
start() {
  local list=$1 rank=$2 workers=$3 first=()
  shift 3
  if [ -f "$folder/names.$rank" ]; then
    first=(sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$folder/names.$rank")
  fi
  CAIRN_SECRET=of-these-tests CAIRN_NUM_THREADS=1 on "$rank" "${first[@]}" "$bin/cairn" launch \
    --hosts "$list" --rank "$rank" --workers "$workers" -- "$bin/hosts_reduce" "$@" \
    >"$folder/out.$rank" 2>&1 </dev/null &
  running[rank]=$!
}

# start_all LIST WORKERS [ARGUMENT...]: on all hosts of the list.
start_all() {
  local list=$1 count rank
  shift
  count=$(tr ',' '\n' <<<"$list" | wc -l)
  for ((rank = 0; rank < count; ++rank)); do start "$list" "$rank" "$@"; done
}

# good TEXT [WORDS]: all programs end well, with the same sums, and say the words, an extended
# regular expression; TEXT is then said of the case.
good() {
  local process file
  for process in "${running[@]}"; do
    wait "$process" || die "$1: must end well"
  done
  running=()
  same_bits "$1"
  for file in "$folder"/out.*; do
    grep -qE -- "${2:-}" "$file" || die "$1: every host must say '$2'"
  done
  rm "$folder"/out.*
  echo "$1"
}

# bad RANK WORDS: that host's run fails and says the words.
bad() {
  if wait "${running[$1]}"; then die "host $1 must fail"; fi
  unset "running[$1]"
  grep -qE -- "$2" "$folder/out.$1" || die "host $1 must say '$2'"
}

# Every rank tells the same bits of each sum.
same_bits() {
  local lines world numel
  lines=$(sed -n "s/^\(\[[0-9]*\] \)\?\(numel .*\)/\2/p" "$folder"/out.*)
  world=$(sed -n 's/.* of \([0-9]*\) by .*/\1/p' <<<"$lines" | head -n 1)
  [ -n "$world" ] || die "$1: ranks must tell their sums"
  for numel in $(sed 's/numel \([0-9]*\) .*/\1/' <<<"$lines" | sort -u); do
    [ "$(grep -c "^numel $numel " <<<"$lines")" -eq "$world" ] ||
      die "$1: $world ranks must tell their sums of $numel, got"$'\n'"$lines"
    [ "$(sed -n "s/^numel $numel hash \([^ ]*\) .*/\1/p" <<<"$lines" | sort -u | wc -l)" -eq 1 ] ||
      die "$1: sums of $numel must be the same on all ranks, got"$'\n'"$lines"
  done
}

# until_said RANK WORDS: within ten seconds.
until_said() {
  local end=$((SECONDS + 10))
  until grep -qF -- "$2" "$folder/out.$1" 2>/dev/null; do
    [ $SECONDS -lt $end ] || die "host $1 must say '$2'"
    sleep 0.05
  done
}

# between LOW HIGH NUMBER
between() { awk -v low="$1" -v high="$2" -v is="$3" 'BEGIN { exit !(is >= low && is < high) }'; }
