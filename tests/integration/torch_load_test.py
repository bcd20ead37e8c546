#!/usr/bin/env python3
"""The rotation files of `oscarkv calibrate` are taken by torch.load. Usage: torch_load_test.py OSCARKV

Exit status 77 (skipped) where PyTorch (Debian: python3-torch) is not installed.
"""
import subprocess
import sys
import tempfile

try:
    import torch
except ImportError:
    print("skipped: this interpreter has no torch (Debian's package is python3-torch)")
    sys.exit(77)


def check(path, version, shape):
    file = torch.load(path)
    assert file["format_version"] == version, file["format_version"]
    assert sorted(file["layers"]) == list(range(8)), sorted(file["layers"])
    for number, layer in file["layers"].items():
        rotation = layer["rotation"]
        assert layer["layer_id"] == number
        assert rotation.dtype == torch.float32 and list(rotation.shape) == shape, rotation.shape
        assert list(layer["eigenvalues"].shape) == shape[:-1]
        assert bool((layer["eigenvalues"].diff() >= 0).all()), "eigenvalues ascend"
        identity = rotation.transpose(-1, -2) @ rotation
        assert float((identity - torch.eye(128)).abs().max()) < 1e-5


def main():
    for flags, version, shape in (([], 1, [128, 128]), (["--per-head"], 2, [2, 128, 128])):
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([sys.argv[1], "calibrate", "--text", "tests/data/wendigo.txt", "--tokens", "1024",
                            "--prompt-tokens", "512", "--needle-prompts", "0", "--out", out, *flags], check=True)
            check(out + "/k_rotation_qqt_r_h_pbr.pt", version, shape)
            check(out + "/v_rotation_sst_r_h_pbr.pt", version, shape)
    print("torch", torch.__version__, "loads the files")


main()
