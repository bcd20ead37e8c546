"""Old and new processes of one cluster understand each other: no field or call of the last release changed its number, type or
place. tests/golden/proto_v0.1.txt lists them; new ones may be added, none may go.

Run as a test: exits 1 and names what an old process would misread. `--print` writes the list of now, for the next release.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/proto_v0.1.txt"
FIELD = re.compile(r"(repeated |optional )?([\w.]+|map<[^>]*>) (\w+) = (\d+)( \[[^\]]*\])?;")
RPC = re.compile(r"rpc (\w+)\((stream )?([\w.]+)\) returns \((stream )?([\w.]+)\);")


def entries(text):
    """One line for each field, enum value and call; raises on what it does not understand."""
    text = re.sub(r"//[^\n]*", "", text)
    package = re.search(r"package ([\w.]+);", text)[1]
    scope, result = [], []
    for statement in re.findall(r"[^;{}]*[;{}]", text):
        statement = " ".join(statement.split())
        if match := re.fullmatch(r"(message|enum|service|oneof) (\w+) \{", statement):
            scope.append((match[1], match[2]))
        elif statement == "}":
            scope.pop()
        elif not scope and re.match(r"(syntax|package|import|option) ", statement):
            pass
        else:
            where = ".".join([package, *(name for kind, name in scope if kind != "oneof")])
            if scope[-1][0] == "enum" and (match := re.fullmatch(r"(\w+) = (\d+);", statement)):
                result.append(f"{where} value {match[2]} {match[1]}")
            elif scope[-1][0] == "service" and (match := RPC.fullmatch(statement)):
                result.append(f"{where} call {match[1]} {match[2] or ''}{match[3]} -> {match[4] or ''}{match[5]}")
            elif match := FIELD.fullmatch(statement):
                result.append(f"{where} field {match[4]} {match[1] or ''}{match[2]} {match[3]}")
            else:
                raise ValueError(f"{where}: not understood: {statement}")
    return result


def main():
    now = [e for path in sorted((ROOT / "proto/oscarkv").rglob("*.proto")) for e in entries(path.read_text())]
    if "--print" in sys.argv:
        print("\n".join(now))
        return 0
    # Names of fields do not travel, but a name that moves to another number is a mistake all the same.
    golden = GOLDEN.read_text().splitlines()
    gone = [e for e in golden if e not in set(now)]
    numbers = [" ".join(e.split()[:3]) for e in now if " call " not in e]
    twice = sorted({n for n in numbers if numbers.count(n) > 1})
    for entry in gone:
        print(f"changed or gone: {entry}")
    for entry in twice:
        print(f"number used twice: {entry}")
    if not gone and not twice:
        print(f"{len(golden)} fields and calls of the release are as they were, {len(now) - len(golden)} are new")
    return 1 if gone or twice else 0


if __name__ == "__main__":
    sys.exit(main())
