#!/usr/bin/env bash
# `srun program`, with the real SLURM: two nodes, both on this machine, in a temporary folder.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sum=$1

for tool in munged slurmctld slurmd srun; do
  command -v $tool >/dev/null || skip "no $tool here (Debian: slurm-wlm, munge)"
done
[ "$(id -u)" -eq 0 ] || skip "SLURM's daemons are started by root alone"

folder=$(mktemp -d /tmp/cairn-slurm-XXXXXX)
daemons=()
end() {
  local status=$? log
  if [ ${#daemons[@]} -gt 0 ]; then
    kill "${daemons[@]}" 2>/dev/null || true
    wait "${daemons[@]}" 2>/dev/null || true
  fi
  if [ $status -ne 0 ]; then
    for log in "$folder"/*.log; do tail -n 20 "$log" >&2; done
  fi
  rm -rf "$folder"
}
trap end EXIT

daemon() {
  "$@" >>"$folder/daemons.log" 2>&1 </dev/null &
  daemons+=($!)
}

# until_true SECONDS COMMAND...
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# Ports of this run; a second run at the same time takes others.
port=$((30000 + $$ % 900 * 3))
host=$(hostname -s)
chmod 755 "$folder" # munged wants its clients to reach its socket
mkdir "$folder/state"
(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
cat >"$folder/slurm.conf" <<CONF
ClusterName=cairn
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
PlugStackConfig=/dev/null
NodeName=cairn[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1))-$((port + 2)) CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

daemon munged --foreground --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
  --log-file="$folder/munged.log" --pid-file="$folder/munged.pid" \
  --seed-file="$folder/munged.seed" --num-threads=4
until_true 10 test -S "$folder/munge.socket" || die "munged must start"
daemon slurmctld -D -i
for node in cairn1 cairn2; do daemon slurmd -D -N $node; done
both_idle() { [ "$(timeout 5 sinfo -h -t idle -o %D)" = 2 ]; }
until_true 60 both_idle || die "SLURM's two nodes must come up"

expect slurm 2 "$(timeout 60 srun -n 2 "$sum")"
# Two nodes. Their names stand for nothing outside of SLURM, so the address is given.
expect slurm 4 "$(MASTER_ADDR=127.0.0.1 timeout 60 srun -N 2 --ntasks-per-node=2 "$sum")"
# srun within a job for shells.
expect slurm 2 "$(timeout 60 salloc -Q -n 2 srun "$sum")"
expect_failure 20 "task 1: Killed" srun -n 2 "$sum" --kill 1 --after 100
# Without srun, a script of a job of two tasks would wait for somebody who never comes.
expect_failure 20 "start the program with srun, or give --ntasks-per-node=2 instead of --ntasks" \
  bash -c 'sbatch -Q -W -n 2 -o "$0/script.out" --wrap "$1"; status=$?; cat "$0/script.out"; exit $status' \
  "$folder" "$sum"
