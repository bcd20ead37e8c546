#!/usr/bin/env python3
"""Writes the golden page layers of tests/unit/codec/page_golden_test.cc, from docs/block_format.md alone.

An implementation of its own, deliberately slow and unlike the kernels: whoever changes the page layout or the quantiser changes
the format, and has to change kBlockFormatVersion, this script and the files together.
Usage: make_pages.py (writes page_d64.hex and page_d128.hex beside itself)
"""
import os
import struct

CLIP = {"K": 0.96, "V": 0.92}


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def fp16(x):
    """Rounds to nearest even; beyond the range: the largest finite value."""
    try:
        return struct.unpack("<e", struct.pack("<e", x))[0]
    except OverflowError:
        return 65504.0 if x > 0 else -65504.0


def rows(head_dim, head, side):
    """64 rows of values that bf16 holds exactly; every row has its own magnitude, some are special."""
    state = 1000003 * head_dim + 17 * head + (1 if side == "V" else 0)
    out = []
    for token in range(64):
        exponent = {8: 8, 9: 20, 10: -30}.get(token, token % 7 - 3)
        row = []
        for _ in range(head_dim):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            row.append(((state >> 33) % 257 - 128) / 32 * 2.0**exponent)
        if token == 5:
            row = [37 / 32] * head_dim  # constant: scale 0, exact
        if token == 6:
            row = [0.0] * head_dim
        if token == 7:
            row[3] = 96.0  # an outlier, for the clip
        out.append(row)
    return out


def quantise(row, ratio):
    threshold = sorted(abs(v) for v in row)[int(f32(f32(ratio) * len(row)))]
    clipped = [max(-threshold, min(threshold, v)) for v in row]
    low, high = min(clipped), max(clipped)
    scale = fp16(f32(max(f32(high - low), f32(1e-8)) / 3))
    offset = fp16(low + 0.0)
    codes = []
    for v in clipped:
        level = 0 if scale == 0 else f32(f32(f32(v - offset) / scale) + 0.5) // 1
        codes.append(int(max(0, min(3, level))))
    return codes, scale, offset


def position(side, head_dim, token, channel):
    """(word, bit) of a code among the side's codes."""
    tb, t = divmod(token, 16)
    ch, c = divmod(channel, 64)
    if side == "K":  # token = 16 tb + g + 8 r; channel = 64 ch + 16 p + 8 u + 2 j + e
        r, g = divmod(t, 8)
        p, c = divmod(c, 16)
        u, c = divmod(c, 8)
        j, e = divmod(c, 2)
    else:  # token = 16 tb + 8 u + 2 j + e; channel = 64 ch + 16 p + 8 r + g
        u, t = divmod(t, 8)
        j, e = divmod(t, 2)
        p, c = divmod(c, 16)
        r, g = divmod(c, 8)
    words_per_slot = 4 if head_dim == 128 else 2
    slot = 8 * j + (g ^ (2 * j))
    return (32 * tb + slot) * words_per_slot + 2 * ch + r, 16 * e + 8 * u + 2 * p


def page_head(head_dim, head):
    code_words = 64 * head_dim // 16
    out = b""
    planes = b""
    for side in "KV":
        words = [0] * code_words
        scales, offsets = [0.0] * 64, [0.0] * 64
        for token, row in enumerate(rows(head_dim, head, side)):
            codes, scale, offset = quantise(row, CLIP[side])
            for channel, code in enumerate(codes):
                word, bit = position(side, head_dim, token, channel)
                words[word] |= code << bit
            tb, t = divmod(token, 16)
            index = 8 * (t % 8) + 2 * tb + t // 8
            scales[index], offsets[index] = scale, offset
        out += struct.pack(f"<{code_words}I", *words)
        planes += struct.pack("<64e", *scales) + struct.pack("<64e", *offsets)
    return out + planes


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    for head_dim, heads in ((64, 2), (128, 1)):
        text = b"".join(page_head(head_dim, h) for h in range(heads)).hex()
        with open(os.path.join(here, f"page_d{head_dim}.hex"), "w") as f:
            for i in range(0, len(text), 96):
                f.write(text[i:i + 96] + "\n")


if __name__ == "__main__":
    main()
