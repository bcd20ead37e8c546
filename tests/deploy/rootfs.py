"""Root file systems without a container engine: debootstrap, mount namespaces, chroot. Needs root. And as much of Dockerfiles as ours use."""
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

# Mounts of one command, gone with it. $1: root, $2: ro or rw, $3: compiler cache outside or "", then the command.
ENTER = r"""
set -e
root=$1 mode=$2 cache=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind /sys "$root/sys"  # UCX looks there for network devices
if [ -n "$cache" ]; then mkdir -p "$root/root/.cache/ccache"; mount --bind "$cache" "$root/root/.cache/ccache"; fi
if [ "$mode" = ro ]; then mount -o remount,bind,ro "$root"; fi
exec chroot "$root" "$@"
"""


class Root:
    def __init__(self, path):
        self.path = Path(path)

    def command(self, *command, user="", read_only=False, cache="", network=""):
        """`network`: the name of a network namespace."""
        inside = [str(c) for c in command]
        if user:  # chroot(2) needs root: privileges are dropped behind it, by the root's own setpriv
            uid, _, gid = user.partition(":")
            inside = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs", "--bounding-set=-all",
                      "--inh-caps=-all", *inside]
        elsewhere = ["nsenter", f"--net=/run/netns/{network}"] if network else []
        return [*elsewhere, "unshare", "--mount", "sh", "-c", ENTER, "enter", str(self.path), "ro" if read_only else "rw", str(cache), *inside]

    def run(self, *command, env=None, log=None, **how):
        """Standard output; raises with the command's end when it fails."""
        clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
                 **(env or {})}
        run = subprocess.run(self.command(*command, **how), env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if log:
            with open(log, "a") as f:
                f.write(run.stdout)
        if run.returncode != 0:
            raise AssertionError(f"{shlex.join(map(str, command))}: exit {run.returncode}\n{run.stdout[-3000:]}")
        return run.stdout

    def start(self, *command, log, env=None, **how):
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **({"OMP_WAIT_POLICY": "passive"} if env is None else env)}
        with open(log, "ab") as f:
            return subprocess.Popen(self.command(*command, **how), env=clean, stdout=f, stderr=f, stdin=subprocess.DEVNULL)


def debootstrap(path):
    """A bare Debian 12, with this machine's way to the packages."""
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", path], check=True, stdout=subprocess.DEVNULL)
    for file in ("etc/resolv.conf", "etc/hosts"):
        shutil.copy(Path("/", file), Path(path, file))
    return Root(path)


def copy_root(base, path):
    subprocess.run(["cp", "-a", "--reflink=auto", f"{base.path}/.", path], check=True)
    return Root(path)


def context_files(repository):
    """What a build would send: tracked files but those of .dockerignore."""
    ignored = [line.strip() for line in (repository / ".dockerignore").read_text().splitlines() if line.strip()]
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=repository, check=True, capture_output=True, text=True)
    return [f for f in listed.stdout.splitlines()
            if (repository / f).is_file() and not any(f == i or f.startswith(i + "/") or fnmatch.fnmatch(f, i) for i in ignored)]


class Dockerfile:
    """Runs FROM, ARG, COPY and RUN of a Dockerfile in roots; keeps USER, ENTRYPOINT and EXPOSE. Refuses what it does not know."""

    def __init__(self, repository, path, folder, make_root, arguments=None, cache="", log=None):
        self.repository, self.folder, self.make_root, self.log = Path(repository), Path(folder), make_root, log
        self.stages, self.variables, self.kept, self.seconds = {}, {}, {}, {}
        self.arguments, self.cache = arguments or {}, cache
        self.stage = None
        text = re.sub(r"\\\n", " ", Path(path).read_text())
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                name, _, rest = line.partition(" ")
                self.instruction(name, self.expand(rest.strip()) if name != "RUN" else rest.strip())

    def expand(self, text):
        return re.sub(r"\$\{?(\w+)\}?", lambda m: self.variables.get(m[1], ""), text)

    def instruction(self, name, rest):
        start = time.monotonic()
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            if image != "debian:12-slim":
                raise ValueError(f"FROM {image}: only debian:12-slim is made here")
            self.stage = stage or "last"
            self.stages[self.stage] = self.make_root(self.folder / f"stage-{self.stage}")
        elif name == "ARG":
            key, _, default = rest.partition("=")
            self.variables[key] = self.arguments.get(key, default)
        elif name == "COPY":
            self.copy(shlex.split(rest))
        elif name == "RUN":
            env = {**self.variables, "CCACHE_BASEDIR": "/src", "CCACHE_NOHASHDIR": "1"}
            self.stages[self.stage].run("sh", "-c", rest, env=env, cache=self.cache if self.stage != "last" else "", log=self.log)
        elif name in ("USER", "ENTRYPOINT", "EXPOSE", "CMD"):
            self.kept[name] = rest
        else:
            raise ValueError(f"{name}: not known here")
        self.seconds[f"{self.stage}: {name} {rest[:60]}"] = round(time.monotonic() - start, 1)

    def copy(self, words):
        root = self.stages[self.stage].path
        if words[0].startswith("--from="):
            source = self.stages[words[0].removeprefix("--from=")].path / words[1].lstrip("/")
            subprocess.run(["cp", "-a", f"{source}/.", root / words[2].lstrip("/")], check=True)
            return
        *sources, target = words
        target = root / target.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        for source in sources:
            if source == ".":
                for file in context_files(self.repository):
                    (target / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(self.repository / file, target / file)
            else:
                shutil.copy(self.repository / source, target)


def compiler_cache():
    """Where ccache of this machine keeps what was compiled, or "": then all is compiled anew, by the same steps."""
    cache = Path(os.environ.get("CCACHE_DIR") or Path.home() / ".cache/ccache")
    return cache if cache.is_dir() else ""


class NetworkNamespace:
    """With nothing but a loopback interface: whatever ports are taken outside are free here."""

    def __init__(self, name):
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        except subprocess.CalledProcessError:
            self.close()
            raise

    def command(self, *command):
        return ["nsenter", f"--net=/run/netns/{self.name}", *map(str, command)]

    def close(self):
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def possible():
    """Why this cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root (chroot and mounts)"
    if shutil.which("debootstrap") is None:
        return "debootstrap is not installed"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        return "mount namespaces are not allowed here"
    return None
