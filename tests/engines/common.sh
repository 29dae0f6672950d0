# What the tests with real engines share. Each is called with the path of the program that sums
# (tests/dist/programs/sum.cpp) and says in one line that it skipped where its engine is absent.

skip() {
  echo "engine tests: skipped, $1"
  exit 0
}

die() {
  echo "engine tests: $1" >&2
  exit 1
}

# expect ENGINE SIZE TEXT: the text holds the right line of every rank, and of no other.
expect() {
  local rank sum=$(($2 * ($2 + 1) / 2)) wanted=
  for ((rank = 0; rank < $2; ++rank)); do wanted+="rank $rank of $2 by $1: $sum"$'\n'; done
  local got
  got=$(sed -n '/^rank [0-9]* of /p' <<<"$3" | sort -V)$'\n'
  [ "$got" = "$wanted" ] || die "$1 must give"$'\n'"$wanted"$'got\n'"$3"
  echo "$1: $2 ranks summed"
}

# expect_failure SECONDS WORDS COMMAND...: it fails within that time and says the words.
expect_failure() {
  local limit=$1 words=$2 text status=0
  shift 2
  text=$(timeout "$limit" "$@" 2>&1 </dev/null) || status=$?
  [ $status -ne 0 ] || die "$1 must fail, got"$'\n'"$text"
  [ $status -ne 124 ] || die "$1 must end within $limit s, got"$'\n'"$text"
  grep -qF -- "$words" <<<"$text" || die "$1 must say '$words', got"$'\n'"$text"
  echo "$1: failed as it must: $words"
}
