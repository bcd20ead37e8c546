"""What a chaos run does to a cluster. A fault is injected, held for a while and healed. noticed() is a number that must grow
meanwhile, read from the counters of processes that survive: a fault that nobody noticed has tested nothing."""
import os
import signal
import subprocess
import time
from pathlib import Path


class Fault:
    hold_s = 4
    longest_hold_s = 0  # it is held so long while nobody notices it
    notice_s = 10  # and may be noticed so long after its end

    def __init__(self, cluster, victim):
        self.cluster, self.victim = cluster, victim

    @property
    def name(self):
        return f"{self.what} {self.victim}"

    @property
    def role(self):
        return self.cluster[self.victim]

    def before(self):
        """What noticed() must exceed."""
        return self.noticed()

    def noticed(self):
        c = self.cluster
        kind = self.victim.rsplit("-", 1)[0]
        if kind == "kvstore":
            clients = ("gateway", "prefill", "attention")
            return (c.total(clients, "oscarkv_kvstore_client_errors_total") + c.zeros(clients, "oscarkv_kvstore_client_node_up")
                    + c.total(clients, "oscarkv_kvstore_client_reconnects_total"))
        if kind == "gateway":
            return c.total(("gateway",), "oscarkv_gateway_client_retries_total")
        if kind == "etcd":
            return c.zeros(("gateway", "prefill", "attention"), "oscarkv_kvstore_client_membership_connected")
        return (c.total(("gateway",), "oscarkv_gateway_worker_failures_total", role=kind)
                + c.zeros(("gateway",), "oscarkv_gateway_worker_up", role=kind)
                + (c.total(("gateway",), "oscarkv_gateway_resumes_total") if kind == "attention" else 0))


class Kill(Fault):
    what = "kill -9"
    hold_s = 2

    def before(self):
        # The next gateway counts from 0, and nobody else counts for this one.
        return 0 if self.victim == "gateway" else self.noticed()

    def inject(self):
        self.role.kill()

    def heal(self):
        self.cluster.restart(self.victim)


class Stop(Fault):
    what = "SIGSTOP"
    hold_s, longest_hold_s = 6, 15  # silence of 3 s and a question of 2 s take longer on a busy machine

    def inject(self):
        self.role.send(signal.SIGSTOP)

    def heal(self):
        self.role.send(signal.SIGCONT)


class Partition(Fault):
    what = "partition 6 s"
    hold_s = 6

    def inject(self):
        self.cluster.network.cut(self.victim)

    def heal(self):
        self.cluster.network.join(self.victim)


class Slow(Fault):
    """Stopped nine tenths of the time, never long enough to be called dead. New prompts come meanwhile: readers soon prefer
    the other replicas, writers cannot."""
    what = "10 % speed"
    hold_s = 6

    def inject(self):
        self.cluster.load.fresh_share = 0.3
        self.cluster.pulse(self.role, stopped_s=0.18, running_s=0.02)

    def heal(self):
        self.cluster.pulse(None)
        self.cluster.load.fresh_share = 0

    def noticed(self):
        """Store calls that took more than a tenth of a second, and those whose callers did not wait so long for this node."""
        roles, name = ("gateway", "prefill", "attention"), "oscarkv_kvstore_client_op_seconds"
        return (self.cluster.total(roles, name + "_count") - self.cluster.total(roles, name + "_bucket", le="0.1")
                + self.cluster.total(roles, "oscarkv_kvstore_client_hedges_total", peer=self.role.address))


class Proxied(Fault):
    """Faults of the control connections of one node, made by a proxy that counts what it did."""

    @property
    def proxy(self):
        return self.cluster.proxies[self.victim]

    def inject(self):
        self.proxy.mode = self.mode

    def heal(self):
        self.proxy.mode = "pass"

    def noticed(self):
        return self.proxy.touched


class Delay(Proxied):
    what, mode = "50 ms delay to", "delay"


class Stall(Proxied):
    what, mode = "stalled connections to", "stall"


class Reset(Proxied):
    what, hold_s = "reset connections to", 1

    def inject(self):
        self.proxy.reset()


class BitFlips(Fault):
    """One bit of every stored 2-bit block, in the nodes' memory, from outside: no replica is good."""
    name, hold_s = "bit flips in all kvstores", 4

    def inject(self):
        if not sum(flip_blocks(role.process.pid) for role in self.cluster.of("kvstore")):
            raise AssertionError("no node holds a block to flip bits in")

    def heal(self):
        pass

    def noticed(self):
        return self.cluster.total(("kvstore",), "oscarkv_kvstore_corrupt_blocks_total")


class EtcdPartition(Partition):
    """Longer than it takes to notice, and than the nodes' leases: nobody may lose a member or an answer by it."""
    what, hold_s = "partition 16 s of", 16


class FullDisk(Fault):
    """Something else fills the disk under a node's tier. New prompts come meanwhile: what is on disk already is not written again."""
    what, hold_s = "full disk of", 10

    def inject(self):
        self.ballast = self.cluster.disk(self.victim) / "ballast"
        with open(self.ballast, "wb") as f:
            try:
                while True:
                    f.write(b"x" * (1 << 16))
                    f.flush()
            except OSError:
                pass
        self.cluster.load.fresh_share = 0.6

    def heal(self):
        self.cluster.load.fresh_share = 0
        self.ballast.unlink()

    def noticed(self):
        return self.cluster.total(("kvstore",), "oscarkv_kvstore_ssd_errors_total")


class DiskFlips(Fault):
    """One bit of every block in the files of all nodes' tiers: no replica on disk is good. Readers or the scrubber find them."""
    name, hold_s = "bit flips on all disks", 8
    notice_s = 75  # the scrubber begins once a minute

    def inject(self):
        deadline = time.monotonic() + 20
        while not sum(flip_files(self.cluster.disk(name)) for name in self.cluster.disks):
            if time.monotonic() > deadline:
                raise AssertionError("no node has a block on disk to flip bits in")
            time.sleep(0.5)

    def heal(self):
        pass

    def noticed(self):
        return self.cluster.total(("kvstore",), "oscarkv_kvstore_ssd_corrupt_blocks_total")


class ClockJump(Fault):
    """An hour ahead, then back: nothing that expires may care about the wall clock."""
    what = "clock +1 h of"
    longest_hold_s = 30  # until the victim has something to log

    def inject(self):
        self.cluster.set_clock(self.victim, 3600)

    def heal(self):
        self.cluster.set_clock(self.victim, 0)

    def noticed(self):
        """Half hours between the newest line of the victim's log and now."""
        return self.cluster.log_ahead_s(self.victim) // 1800


def flip_blocks(pid, magic=b"OSCARKVB"):
    """Flips bit 2 of byte 3000 of each block found in the large mappings of a process; returns how many."""
    flipped = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", 0) as memory:
        for line in maps:
            span, access = line.split()[:2]
            begin, end = (int(x, 16) for x in span.split("-"))
            if not access.startswith("rw-") or end - begin < 16 << 20:
                continue
            memory.seek(begin)
            data = memory.read(end - begin)
            at = data.find(magic)
            while at >= 0:
                memory.seek(begin + at + 3000)
                memory.write(bytes([data[at + 3000] ^ 4]))
                flipped += 1
                at = data.find(magic, at + 4)
    return flipped


def flip_files(folder, magic=b"OSCARKVB"):
    """The same to the blocks in the files of a folder, in place."""
    flipped = 0
    for path in Path(folder).rglob("*.blob"):
        try:
            with open(path, "r+b", 0) as f:
                data = f.read()
                at = data.find(magic)
                while at >= 0:
                    if at + 3000 < len(data):
                        f.seek(at + 3000)
                        f.write(bytes([data[at + 3000] ^ 4]))
                        flipped += 1
                    at = data.find(magic, at + 4)
        except FileNotFoundError:  # dropped by the tier meanwhile
            continue
    return flipped


def mount(folder, size):
    """A file system of its own, so small that it can be filled; False where that is not permitted."""
    Path(folder).mkdir(parents=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True,
                          check=False).returncode == 0


def rss(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
