#!/usr/bin/env python3
"""Writes the golden codes of tests/unit/codec/shaped_encode_test.cc in float64 with numpy: docs/block_format.md, profile `shaped`.

Rows and metric come from integer arithmetic. Usage: make_shaped.py (writes shaped.txt beside itself)
"""
import os

import numpy as np

D, ROWS = 128, 64


class Numbers:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return ((self.state >> 33) % 257 - 128) / 32


def metric():
    """W = G^T G + 0.05 I of trace D; G's rows fade, so that W's eigenvalues spread over some powers of ten."""
    numbers = Numbers(7)
    g = np.array([[numbers.next() * 2.0 ** -(i / 16) for _ in range(D)] for i in range(D)])
    w = g.T @ g
    w = w * (D / np.trace(w)) + 0.05 * np.eye(D)
    return w * (D / np.trace(w))


def rows():
    numbers = Numbers(3)
    return np.array([[numbers.next() * 2.0 ** (t % 5 - 2) for _ in range(D)] for t in range(ROWS)])


def column(x):
    return x[:, None]


def nearest(y, lo, step):
    return np.clip(np.rint((y - column(lo)) / column(step)), 0, 3)


def affine_start(y):
    best = np.full(ROWS, np.inf)
    best_lo, best_step = np.zeros(ROWS), np.zeros(ROWS)
    for start in (0.9, 0.75, 0.62):
        lo = y.min(1) * start
        step = (y.max(1) * start - lo) / 3
        for _ in range(3):
            k = nearest(y, lo, step)
            kc = k - column(k.mean(1))
            step = (kc * (y - column(y.mean(1)))).sum(1) / (kc**2).sum(1)
            lo = y.mean(1) - step * k.mean(1)
        error = ((nearest(y, lo, step) * column(step) + column(lo) - y) ** 2).sum(1)
        better = error < best
        best, best_lo, best_step = (np.where(better, a, b) for a, b in ((error, best), (lo, best_lo), (step, best_step)))
    return best_lo + 1.5 * best_step, best_step


def encode(y, w, widen, gain, sweeps, symmetric):
    c = np.linalg.cholesky(w)
    low = c / np.diag(c)
    if symmetric:
        middle, step = np.zeros(ROWS), np.sqrt((y * y).mean(1)) * 0.996
    else:
        middle, step = affine_start(y)
    step = step * widen
    x = (y - column(middle)) / column(step)
    q, e = np.zeros_like(x), np.zeros_like(x)

    def put(j, target):
        q[:, j] = np.clip(np.rint(target + 1.5), 0, 3) - 1.5
        e[:, j] = x[:, j] - q[:, j]

    for j in range(D - 1, -1, -1):
        put(j, x[:, j] + e[:, j + 1:] @ low[j + 1:, j])
    for _ in range(sweeps):
        for j in range(D - 1, -1, -1):
            put(j, x[:, j] + (e @ w[:, j] - w[j, j] * e[:, j]) / w[j, j])

    def dot(a, b):
        return np.einsum("ri,ij,rj->r", a, w, b)

    one = np.ones_like(x)
    if symmetric:
        alpha, beta = dot(q, x) / dot(q, q), np.zeros(ROWS)
    else:
        det = dot(q, q) * dot(one, one) - dot(q, one) ** 2
        alpha = (dot(q, x) * dot(one, one) - dot(x, one) * dot(q, one)) / det
        beta = (dot(q, q) * dot(x, one) - dot(q, one) * dot(q, x)) / det
    approximated = column(step * alpha) * q + column(middle + step * beta)
    g = 1 + gain * (np.clip(dot(y, y) / dot(approximated, y), 0.8, 1.5) - 1)
    scale, offset = step * alpha * g, (middle + step * beta - 1.5 * step * alpha) * g
    scale, offset = scale.astype(np.float16).astype(float), offset.astype(np.float16).astype(float)
    error = (q + 1.5) * column(scale) + column(offset) - y
    return (q + 1.5).astype(int), scale, offset, dot(error, error).sum() / dot(y, y).sum()


def main():
    w, y = metric(), rows()
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "shaped.txt"), "w") as f:
        for name, gain, sweeps, symmetric in (("affine", 1.0, 2, False), ("feedback_only", 0.3, 0, False),
                                              ("symmetric", 0.6, 2, True)):
            codes, scale, offset, damage = encode(y, w, 1.15, gain, sweeps, symmetric)
            f.write("%s %g %d %d %.6f\n" % (name, gain, sweeps, symmetric, damage))
            for t in range(ROWS):
                f.write("%s %.8g %.8g\n" % ("".join(map(str, codes[t])), scale[t], offset[t]))


if __name__ == "__main__":
    main()
