"""Hosts of their own for the processes of a chaos run: network namespaces on one bridge, and a TCP proxy for what a cut
link cannot show (delay, stalls, reset connections: these kernels have no netem).

Needs root and iproute2. Everything made here is gone after close(), and what a killed run left is removed by the next.
"""
import os
import select
import socket
import subprocess
import threading
import time

PREFIX = "okvc"
SUBNET = "10.213.77"


def _ip(*args, check=True):
    return subprocess.run(["ip", *args], check=check, capture_output=True, text=True)


def why_not():
    """Why no namespaces can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        _ip("netns", "add", PREFIX + "-try")
        try:
            _ip("-n", PREFIX + "-try", "link", "set", "lo", "up")  # fails in a chroot, whose root is no mount point
        finally:
            _ip("netns", "del", PREFIX + "-try")
        _ip("link", "add", PREFIX + "-t", "type", "bridge")
        _ip("link", "del", PREFIX + "-t")
    except FileNotFoundError:
        return "no `ip` (Debian's iproute2)"
    except subprocess.CalledProcessError as e:
        return f"cannot make network namespaces: {e.stderr.strip()}"
    return None


class Host:
    def __init__(self, name, number, prefix=PREFIX, subnet=SUBNET):
        self.namespace = f"{prefix}-{name}"
        self.port = f"{prefix}{number}"  # its end on the bridge
        self.address = f"{subnet}.{number}"
        self.prefix = ["ip", "netns", "exec", self.namespace]


def _only_run(prefix, seconds=300):
    """Names and addresses are those of one run: a second one, even of another clone, waits until the socket's name is free."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + seconds
    while True:
        try:
            lock.bind(f"\0{prefix}-chaos")
            return lock
        except OSError as e:
            if time.monotonic() > deadline:
                raise RuntimeError("another chaos run on this machine does not end") from e
            time.sleep(1)


class Network:
    def __init__(self, prefix=PREFIX, subnet=SUBNET):
        """Runs of different prefixes and subnets do not disturb each other."""
        self._lock = _only_run(prefix)
        self.prefix, self.subnet, self.bridge = prefix, subnet, f"{prefix}-br"
        self.hosts = {}
        self.clear()
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{subnet}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def host(self, name):
        if name in self.hosts:
            return self.hosts[name]
        host = self.hosts[name] = Host(name, len(self.hosts) + 2, self.prefix, self.subnet)
        _ip("netns", "add", host.namespace)
        _ip("link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("link", "set", host.port, "master", self.bridge, "up")
        inside = ("-n", host.namespace)
        _ip(*inside, "addr", "add", host.address + "/24", "dev", "eth0")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "link", "set", "eth0", "up")
        deadline = time.monotonic() + 10  # UCX sees only interfaces that are up
        while " state UP " not in _ip(*inside, "-o", "link", "show", "eth0").stdout:
            if time.monotonic() > deadline:
                raise RuntimeError(f"eth0 of {host.namespace} does not come up")
            time.sleep(0.02)
        return host

    def cut(self, name):
        """No packet to or from this host, and no error to anybody: a partition."""
        _ip("link", "set", self.hosts[name].port, "nomaster")

    def join(self, name):
        _ip("link", "set", self.hosts[name].port, "master", self.bridge)

    def clear(self):
        for line in _ip("netns", "list").stdout.splitlines():
            if line.startswith(self.prefix + "-"):
                _ip("netns", "del", line.split()[0], check=False)
        _ip("link", "del", self.bridge, check=False)

    def close(self):
        self.clear()
        self._lock.close()


class Proxy:
    """Carries TCP from a port of the bridge's address to `target`. mode: pass, delay, stall; reset() breaks what is open.

    `touched` counts chunks that were held back and connections that were broken."""

    def __init__(self, delay_s=0.05):
        self.target, self.delay_s = None, delay_s  # target: "host:port", set before anybody connects
        self.mode, self.touched = "pass", 0
        self._open = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((f"{SUBNET}.1", 0))
        self.address = "%s:%d" % self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                host, port = self.target.rsplit(":", 1)
                far = socket.create_connection((host, int(port)), timeout=5)
            except OSError:
                near.close()
                continue
            for s in (near, far):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add((near, far))
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(a, b, (near, far)), daemon=True).start()

    def _carry(self, source, sink, pair):
        try:
            while True:
                select.select([source], [], [])
                if self.mode != "pass":
                    self.touched += 1
                if self.mode == "delay":
                    time.sleep(self.delay_s)
                while self.mode == "stall":
                    time.sleep(0.05)
                data = source.recv(1 << 16)
                if not data:
                    break
                sink.sendall(data)
        except (OSError, ValueError):
            pass
        self._end(pair)

    def _end(self, pair):
        with self._lock:
            self._open.discard(pair)
        for s in pair:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def reset(self):
        with self._lock:
            pairs = list(self._open)
        for pair in pairs:
            self.touched += 1
            for s in pair:
                try:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                except OSError:
                    pass
            self._end(pair)

    def close(self):
        self._listener.close()
        self.reset()
