#!/usr/bin/env python3
"""Peak memory of `oscarkv calibrate --order layers` on Qwen3-shaped folders of random weights, against the bound that the command states.

  bench/codec/streamed_calibration.py OSCARKV [--layers 2,8] [--tokens 1024] ...    from the repository's root

The folders lie under --folder (default: the system's temporary one) and go away one after the other. Fails when a run takes more than its
bound, when memory grows with the number of layers by more than the sums do, or, with --compare, when the fit of the smallest model is not
the one that the whole model in memory gives, byte for byte.
"""
import argparse
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# The high bytes of bf16 numbers of absolute value 2^-7 to 2^-5, by a random byte's lowest bit.
HIGH = bytes(0x3C if b & 1 else 0xBC for b in range(256))


def tensors(args, layers):
    """Name and shape of every tensor, in the order of the file."""
    q, kv = args.heads * args.head_dim, args.kv_heads * args.head_dim
    yield "lm_head.weight", [args.vocab, args.hidden]
    yield "model.embed_tokens.weight", [args.vocab, args.hidden]
    for layer in range(layers):
        p = f"model.layers.{layer}."
        for name, rows in (("input_layernorm", args.hidden), ("post_attention_layernorm", args.hidden),
                           ("self_attn.q_norm", args.head_dim), ("self_attn.k_norm", args.head_dim)):
            yield p + name + ".weight", [rows]
        for name, n, k in (("self_attn.q_proj", q, args.hidden), ("self_attn.k_proj", kv, args.hidden), ("self_attn.v_proj", kv, args.hidden),
                           ("self_attn.o_proj", args.hidden, q), ("mlp.gate_proj", args.intermediate, args.hidden),
                           ("mlp.up_proj", args.intermediate, args.hidden), ("mlp.down_proj", args.hidden, args.intermediate)):
            yield p + name + ".weight", [n, k]
    yield "model.norm.weight", [args.hidden]


def write_model(args, layers, folder):
    reference = "models/reference/"
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": args.head_dim,
              "hidden_act": "silu", "hidden_size": args.hidden, "intermediate_size": args.intermediate, "max_position_embeddings": 40960,
              "num_attention_heads": args.heads, "num_hidden_layers": layers, "num_key_value_heads": args.kv_heads, "rms_norm_eps": 1e-6,
              "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
              "vocab_size": args.vocab}
    with open(folder + "/config.json", "w") as f:
        json.dump(config, f)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference + name, folder)
    header, at = {}, 0
    for name, shape in tensors(args, layers):
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(layers)
    with open(folder + "/model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(args, layers):
            if len(shape) == 1:
                f.write(b"\x80\x3f" * shape[0])  # norms: 1
                continue
            for _ in range(shape[0]):
                row = bytearray(2 * shape[1])
                row[0::2] = rng.randbytes(shape[1])
                row[1::2] = rng.randbytes(shape[1]).translate(HIGH)
                f.write(row)
    return at


def calibrate(args, order, folder, out):
    """Peak resident bytes, seconds, and what the command printed."""
    command = [args.oscarkv, "calibrate", "--model", folder, "--text", args.text, "--profile", "shaped", "--order", order, "--tokens",
               str(args.tokens), "--prompt-tokens", str(args.prompt_tokens), "--threads", str(args.threads), "--out", out]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)  # waited for here, for its own figures
        log.seek(0)
        text = log.read()
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {child.returncode}\n{text}")
    return usage.ru_maxrss << 10, time.monotonic() - start, text


def stated(text):
    number, unit = re.search(r"at most ([0-9.]+) ([KMGT]?i?B) of memory", text).groups()
    return float(number) * UNITS[unit] * 1.005  # as rounded


def sums(text):
    number, unit = re.search(r"sums and samples take ([0-9.]+) ([KMGT]?i?B)", text).groups()
    return float(number) * UNITS[unit]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("oscarkv")
    p.add_argument("--layers", default="2,8")
    p.add_argument("--hidden", type=int, default=4096)
    p.add_argument("--intermediate", type=int, default=12288)
    p.add_argument("--heads", type=int, default=32)
    p.add_argument("--kv-heads", type=int, default=8)
    p.add_argument("--head-dim", type=int, default=128)
    p.add_argument("--vocab", type=int, default=8192)
    p.add_argument("--tokens", type=int, default=1024)
    p.add_argument("--prompt-tokens", type=int, default=512)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--text", default="tests/data/wendigo.txt")
    p.add_argument("--folder", default=None)
    p.add_argument("--compare", action="store_true")
    args = p.parse_args()
    mib = 1 << 20
    first = None
    for layers in sorted(int(n) for n in args.layers.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            size = write_model(args, layers, folder)
            out = folder + "/fit"
            peak, seconds, text = calibrate(args, "layers", folder, out)
            plan = next(line for line in text.splitlines() if "at most" in line)
            print(f"{layers} layers, {size / mib:.0f} MiB of weights: peak {peak / mib:.0f} MiB, stated {stated(text) / mib:.0f} MiB, "
                  f"{seconds:.0f} s\n  {plan}", flush=True)
            assert plan.startswith("layer by layer"), plan
            assert peak <= stated(text), "more than was stated"
            if args.compare and first is None:
                whole, seconds, _ = calibrate(args, "prompts", folder, folder + "/whole")
                print(f"  the whole model in memory: peak {whole / mib:.0f} MiB, {seconds:.0f} s")
                name = "/codec_shaped.safetensors"
                with open(out + name, "rb") as a, open(folder + "/whole" + name, "rb") as b:
                    assert a.read() == b.read(), "another fit"
            if first is None:
                first = (peak, sums(text))
            # The fits that are written grow with the sums; 32 MiB: what the allocator keeps.
            growth, allowed = peak - first[0], 2 * (sums(text) - first[1]) + 32 * mib
            assert growth <= allowed, f"{growth / mib:.0f} MiB more than with fewer layers"
    print("bounded")


if __name__ == "__main__":
    main()
