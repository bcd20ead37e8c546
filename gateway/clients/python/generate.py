#!/usr/bin/env python3
"""Makes the messages of proto/oscarkv/v1 for Python, with type stubs: generate.py [FOLDER, default: beside this file].

By grpcio-tools where a version is installed that can (pip install grpcio-tools), else by `protoc` (Debian: protobuf-compiler; Debian's own
python3-grpc-tools is too old to write type stubs). What it writes belongs to the version of the protos and of protobuf that it was made
with: make it anew rather than keep it.
"""
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[2] / "proto"


def generate(folder: Path) -> None:
    """The packages oscarkv and oscarkv.v1 below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = []
    for compiler in ([sys.executable, "-m", "grpc_tools.protoc"], ["protoc"]):
        command = [*compiler, f"-I{PROTO}", f"--python_out={folder}", f"--pyi_out={folder}", "oscarkv/v1/gateway.proto",
                   "oscarkv/v1/worker.proto"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            return
        except (OSError, subprocess.CalledProcessError) as error:
            errors.append(f"{' '.join(compiler)}: {getattr(error, 'stderr', None) or error}".strip())
    sys.exit("neither compiler of protos works here:\n" + "\n".join(errors))


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
