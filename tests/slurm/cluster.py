"""A real SLURM of two nodes (n1, n2) on this machine, without systemd, cgroups or a database: Debian's packages
slurmctld, slurmd, slurm-client and munge, run by this user from one folder.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={port}
SrunPortRange={first}-{last}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=30
OverTimeLimit=0
InactiveLimit=0
MinJobAge=3600
FirstJobId={job}
JobRequeue=1
SlurmctldTimeout=30
SlurmdTimeout=300
MessageTimeout=10
EnforcePartLimits=ANY
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2
"""
# There is no accounting database, so what submitit asks of sacct is answered from the queue.
SACCT = """#!/bin/bash
ids=(); while [ $# -gt 0 ]; do [ "$1" = -j ] && { ids+=("$2"); shift; }; shift; done
echo "JobID|State|NodeList"
for id in "${ids[@]}"; do squeue -h -r --states=all -j "$id" -o '%i|%T|%N' 2>/dev/null; done
exit 0
"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def missing() -> str | None:
    """Why a cluster cannot be had here, None where it can."""
    if absent := [name for name in COMMANDS if shutil.which(name) is None]:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return None


class Cluster:
    """The cluster below ``folder`` (short and new). ``environment`` is what its users need."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "MASTER_ADDR": "127.0.0.1",  # n1 and n2 are no names of a network
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        """Bring it up; raises RuntimeError with its logs where that fails."""
        for name in ("munge", "state", "spool.n1", "spool.n2", "log", "bin"):
            (self.folder / name).mkdir(mode=0o700 if name == "state" else 0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "bin" / "sacct").write_text(SACCT)
        (self.folder / "bin" / "sacct").chmod(0o755)
        places = {"port": self.port, "n1": self.port + 1, "n2": self.port + 2}
        places |= {"first": self.port + 10, "last": self.port + 250}
        # A job's ranks meet at port 15000 + the last four digits of its number, which no other cluster here may have.
        places["job"] = self.port // 300 % 100 * 100 + 1
        text = CONFIG.format(
            host=socket.gethostname().split(".")[0], user=getpass.getuser(), folder=self.folder, **places
        )
        (self.folder / "slurm.conf").write_text(text)
        munge = {name: self.folder / "munge" / name for name in ("key", "sock", "pid", "seed")}
        options = [f"--{o}={munge[n]}" for o, n in (("key-file", "key"), ("socket", "sock"), ("pid-file", "pid"))]
        options += [f"--seed-file={munge['seed']}", f"--log-file={self.folder / 'log' / 'munged.log'}"]
        self._daemon("munged", "-F", *options)
        self._until(munge["sock"].exists, "munged")
        config = ("-f", str(self.folder / "slurm.conf"))
        self._daemon("slurmctld", "-D", "-i", *config)
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node, *config)
        self._until(lambda: self("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle", "idle"], "slurm")

    def _daemon(self, *command: str) -> None:
        with open(self.folder / "log" / f"{command[0]}.out", "ab") as out:
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=self.environment,
                    start_new_session=True,
                )
            )

    def _until(self, holds: object, name: str) -> None:
        for _ in range(1200):
            if holds():  # type: ignore[operator]
                return
            time.sleep(0.1)
        logs = "\n".join(path.read_text()[-1500:] for path in (self.folder / "log").iterdir())
        raise RuntimeError(f"{name} did not come up:\n{logs}")

    def stop(self) -> None:
        """End every job, then the daemons."""
        for options in (("--signal=KILL", "--state=RUNNING"), ()):
            self("scancel", *options, f"--user={getpass.getuser()}")
        until = time.monotonic() + 10
        while self("squeue", "-h", "-o", "%i").split() and time.monotonic() < until:
            time.sleep(0.2)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def __call__(self, *command: str) -> str:
        """What one of SLURM's commands answers."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120).stdout

    def states(self) -> dict[str, str]:
        """Every job since the start, with its state."""
        lines = self("squeue", "-h", "-r", "--states=all", "-o", "%i|%T").split()
        return dict(line.split("|", 1) for line in lines)  # type: ignore[misc]

    def wait(self, job: str, seconds: float = 480) -> str:
        """The state in which a job has ended; raises TimeoutError."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (state := self.states().get(job, "")) in ENDED:
                return state
            time.sleep(0.2)
        raise TimeoutError(f"job {job} is {self.states().get(job)} after {seconds:.0f} s")

    def ended(self, before: set[str]) -> list[str]:
        """The states in which the jobs that were not there ``before`` have ended, in the order of their numbers."""
        new = sorted(
            (job for job in self.states() if job not in before), key=lambda job: [int(n) for n in job.split("_")]
        )
        return [self.wait(job) for job in new]
