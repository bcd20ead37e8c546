"""What the generated pages say: options by command, metrics by name. Their test keeps them equal to what the binary says."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def options():
    """{command: {option: {"default", "allowed"}}}"""
    result, command = {}, None
    for line in (ROOT / "docs/options.md").read_text().splitlines():
        if match := re.fullmatch(r"## oscarkv (.+)", line):
            command = result.setdefault(match[1], {})
        elif match := re.match(r"\| `--([\w-]+)` \| (?:`(.*?)`)? ?\| (.*?) \| ", line.replace("\\|", "/")):
            command[match[1]] = {"default": match[2] or "", "allowed": match[3]}
    return result


def metrics():
    """{metric: (type, {labels})}"""
    rows = re.findall(r"^\| `(oscarkv_\w+)` \| (\w+) \| (.*?) \|", (ROOT / "docs/metrics.md").read_text(), re.M)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def number(text, units):
    match = re.fullmatch(r"([\d.e+]+)\s*([A-Za-z]*)", text.strip())
    if not match or match[2] not in units:
        raise ValueError(f"{text!r}: expected a number and one of {list(units)}")
    return float(match[1]) * units[match[2]]


def size(text):
    return number(text, BYTES)


def seconds(text):
    return number(text, SECONDS)


def check_value(allowed, value):
    """Raises ValueError when the value is not what the option's row allows."""
    if match := re.fullmatch(r"a (size|duration) in (.*)\.\.(.*)", allowed):
        read = size if match[1] == "size" else seconds
        inside = read(match[2]) <= read(value) <= read(match[3])
    elif match := re.fullmatch(r"([\d.e+-]+)\.\.([\d.e+-]+)", allowed):
        inside = float(match[1]) <= float(value) <= float(match[2])
    elif "/" in allowed:
        inside = value in allowed.split("/")
    else:
        inside = allowed in ("text", "a comma-separated list")
    if not inside:
        raise ValueError(f"{value!r}: allowed is {allowed}")


def config_lines(text):
    """{option: value} of a config file."""
    lines = [line.strip() for line in text.splitlines()]
    return {k.strip(): v.strip().strip('"') for k, _, v in
            (line.partition("=") for line in lines if line and not line.startswith("#"))}


def metrics_of_expression(expression):
    """[(documented name, labels asked for)] of a PromQL expression."""
    known, found = metrics(), []
    for name, matchers in re.findall(r"\b(oscarkv_\w+|up)\b(?:\{([^}]*)\})?", expression):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if base in known and known[base][0] == "histogram" and base != name:
            name = base
        found.append((name, set(re.findall(r"(\w+)\s*(?:=|!|=~)", matchers))))
    return found
