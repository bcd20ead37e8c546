"""What a chaos run does to a cluster. A fault is injected, held for a while and healed. noticed() is a number that must grow
meanwhile, read from the counters of processes that survive: a fault that nobody noticed has tested nothing."""
import os
import signal


class Fault:
    hold_s = 4

    def __init__(self, cluster, victim):
        self.cluster, self.victim = cluster, victim

    @property
    def name(self):
        return f"{self.what} {self.victim}"

    @property
    def role(self):
        return self.cluster[self.victim]

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
            return c.total(("kvstore", "gateway"), "oscarkv_membership_errors_total")
        return (c.total(("gateway",), "oscarkv_gateway_worker_failures_total", role=kind)
                + c.zeros(("gateway",), "oscarkv_gateway_worker_up", role=kind)
                + (c.total(("gateway",), "oscarkv_gateway_resumes_total") if kind == "attention" else 0))


class Kill(Fault):
    what = "kill -9"
    hold_s = 2

    def inject(self):
        self.role.kill()

    def heal(self):
        self.cluster.restart(self.victim)


class Stop(Fault):
    what = "SIGSTOP 6 s"
    hold_s = 6

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
    """Stopped nine tenths of the time, never long enough to be called dead."""
    what = "10 % speed"
    hold_s = 6

    def inject(self):
        self.cluster.pulse(self.role, stopped_s=0.18, running_s=0.02)

    def heal(self):
        self.cluster.pulse(None)

    def noticed(self):
        """Store calls that took more than a tenth of a second."""
        roles, name = ("gateway", "prefill", "attention"), "oscarkv_kvstore_client_op_seconds"
        return self.cluster.total(roles, name + "_count") - self.cluster.total(roles, name + "_bucket", le="0.1")


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


class ClockJump(Fault):
    """An hour ahead, then back: nothing that expires may care about the wall clock."""
    what = "clock +1 h of"

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


def rss(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
