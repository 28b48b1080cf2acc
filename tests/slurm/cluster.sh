#!/usr/bin/env bash
# A Slurm of one node on 127.0.0.1, for tests: `make slurm`. Needs root on Debian or Ubuntu.
#
#   tests/slurm/cluster.sh install      Slurm and munge by apt; nothing is started
#   tests/slurm/cluster.sh start DIR    munged, slurmctld and slurmd, whose state is in DIR
#   tests/slurm/cluster.sh stop DIR     ends what `start DIR` started, and nothing else
#
# The node claims SLURM_TEST_MEM MB and SLURM_TEST_CPUS cores, whatever there is, and a pretended
# GPU. A job over its memory is found by sampling, every 2 s: containers seldom allow cgroups. The
# only trace outside DIR is the link /etc/slurm/slurm.conf, which `stop` removes: the plugin's job
# steps drop SLURM_CONF.
set -euo pipefail

CONF_LINK=/etc/slurm/slurm.conf
CPUS=${SLURM_TEST_CPUS:-2}
MEM=${SLURM_TEST_MEM:-64000}
PORT=${SLURM_TEST_PORT:-27817} # of slurmctld; slurmd has the next one

fail() {
  echo "error: $*" >&2
  exit 1
}

install() {
  command -v apt-get >/dev/null || fail "no apt-get: install slurm-wlm and munge by hand"
  [ "$(id -u)" = 0 ] || fail "installing Slurm needs root"
  local program missing=
  for program in slurmctld slurmd munged sbatch; do # `command -v a b` is content with one of them
    command -v "$program" >/dev/null || missing=yes
  done
  if [ -z "$missing" ]; then return; fi
  # The packages would start services of their own.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    made=yes
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
  if [ -n "$made" ]; then rm -f $policy; fi
}

alive() { # alive PIDFILE: the daemon that wrote it is still there
  [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null
}

configure() {
  local host
  host=$(hostname -s)
  # Jobs of an earlier cluster are forgotten.
  rm -rf "$DIR"/{state,spool,log}
  mkdir -p "$DIR"/{etc,run,log,state,spool,munge}
  chmod 755 "$DIR" "$DIR/run"
  chmod 700 "$DIR/munge"
  head -c 1024 /dev/urandom >"$DIR/munge/key"
  chmod 400 "$DIR/munge/key"
  # A device that exists is all that a request for it needs.
  [ -e "$DIR/run/gpu0" ] || mknod "$DIR/run/gpu0" c 1 3 2>/dev/null || touch "$DIR/run/gpu0"
  echo "NodeName=$host Name=gpu File=$DIR/run/gpu0" >"$DIR/etc/gres.conf"
  cat >"$DIR/etc/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
SlurmctldParameters=enable_configless
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=5
MinJobAge=7200
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$MEM Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
END
}

start() {
  command -v slurmctld slurmd munged sbatch >/dev/null ||
    fail "no Slurm here: tests/slurm/cluster.sh install"
  if [ -e $CONF_LINK ] || [ -L $CONF_LINK ]; then
    fail "$CONF_LINK exists: there is a Slurm already, or one that was not stopped"
  fi
  configure
  mkdir -p /etc/slurm
  ln -s "$DIR/etc/slurm.conf" $CONF_LINK
  export SLURM_CONF=$DIR/etc/slurm.conf
  # --force: of a key that is not root's alone munged only warns.
  munged --force --socket="$DIR/run/munge.socket" --key-file="$DIR/munge/key" \
    --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" \
    --seed-file="$DIR/munge/seed" 2>>"$DIR/log/munged.err"
  slurmctld
  slurmd -N "$(hostname -s)"
  for _ in $(seq 120); do
    if [ "$(sinfo --noheader --format=%T 2>/dev/null | head -1)" = idle ]; then return; fi
    sleep 0.25
  done
  sinfo >&2 || true
  tail -n 5 "$DIR"/log/*.log >&2
  fail "the node did not become idle"
}

stop() {
  local daemon pid
  export SLURM_CONF=$DIR/etc/slurm.conf
  if alive "$DIR/run/slurmctld.pid"; then
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
  fi
  for daemon in slurmd slurmctld munged; do
    if alive "$DIR/run/$daemon.pid"; then
      pid=$(cat "$DIR/run/$daemon.pid")
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 40); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.25
      done
    fi
  done
  if [ "$(readlink $CONF_LINK)" = "$DIR/etc/slurm.conf" ]; then rm -f $CONF_LINK; fi
}

[ $# -ge 1 ] || fail "usage: $0 install | start DIR | stop DIR"
if [ "$1" != install ]; then
  [ $# -eq 2 ] || fail "usage: $0 $1 DIR"
  mkdir -p "$2"
  DIR=$(cd "$2" && pwd)
fi
case $1 in
install | start | stop) "$1" ;;
*) fail "usage: $0 install | start DIR | stop DIR" ;;
esac
