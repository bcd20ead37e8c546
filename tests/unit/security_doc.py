"""docs/security.md's table of hostile inputs names tests that exist, and has at least 40 rows. Run as a test."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main():
    files = subprocess.run(["git", "ls-files", "tests"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    tests = set()
    for path in files:
        if path.endswith(".cc"):
            tests |= {f"{s}.{t}" for s, t in re.findall(r"^TEST(?:_F|_P)?\((\w+),\s*(\w+)\)", (ROOT / path).read_text(), re.M)}
    suites = {t.split(".")[0] for t in tests}
    known = tests | suites | {Path(f).name for f in files} | {Path(f).stem.removesuffix("_fuzz") for f in files if "/fuzz/" in f}
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs/security.md").read_text(), re.M)
    errors = [f"row {number}: no test {name}" for number, cell in rows for name in re.findall(r"`([^`]+)`", cell)
              if name not in known and name != "SO_PEERCRED"]
    errors += [f"row {number}: names no test" for number, cell in rows if "`" not in cell]
    if [int(n) for n, _ in rows] != list(range(1, len(rows) + 1)) or len(rows) < 40:
        errors.append(f"{len(rows)} rows: expected 40 or more, numbered from 1")
    print("\n".join(errors) or f"{len(rows)} hostile inputs, each with its test")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
