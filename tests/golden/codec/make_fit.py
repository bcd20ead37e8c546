#!/usr/bin/env python3
"""Writes the golden fits of tests/unit/codec/fit_test.cc with numpy: OSCAR's targets and eigenvectors, and the transforms of
profile `shaped`, from activations that integer arithmetic makes the same in both languages.

Usage: make_fit.py (writes fit.txt beside itself)
"""
import os

import numpy as np

D, KV_HEADS, GROUP, TOKENS, T = 16, 2, 2, 96, 0.3


def rows(seed, n):
    """n rows of D numbers; channel c is scaled by 2^-(c % 5) and leans on its neighbour."""
    state, out = seed, np.zeros((n, D))
    for i in range(n):
        for c in range(D):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            out[i, c] = ((state >> 33) % 2001 - 1000) / 1024.0 * 2.0 ** -(c % 5)
        for c in range(1, D):
            out[i, c] += 0.5 * out[i, c - 1]
    return out


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]]) / np.sqrt(2)
    return h


def power(s, p, floor=1e-9):
    w, u = np.linalg.eigh((s + s.T) / 2)
    return (u * np.maximum(w, floor * w.max()) ** p) @ u.T


def main():
    q = [rows(11 + h, TOKENS * GROUP) for h in range(KV_HEADS)]
    k = [rows(31 + h, TOKENS) for h in range(KV_HEADS)]
    v = [rows(51 + h, TOKENS) for h in range(KV_HEADS)]
    s = [x.T @ x / len(x) for x in q]
    sst = []
    for h in range(KV_HEADS):
        w = np.einsum("ti,ij,tj->t", k[h], s[h], k[h])
        w = w / w.sum() * TOKENS
        sst.append((v[h] * w[:, None]).T @ v[h] / TOKENS)
    out = {}
    for name, target in (("qqt", sum(s) / KV_HEADS), ("sst", sum(sst) / KV_HEADS)):
        out[name + ".eigenvalues"], out[name + ".eigenvectors"] = np.linalg.eigh(target)
    c = k[0] - k[0].mean(0)
    s_k, s_q = c.T @ c / TOKENS, s[0]
    eye = np.eye(D)
    s_k = s_k + 1e-4 * np.trace(s_k) / D * eye
    s_q = s_q + 1e-4 * np.trace(s_q) / D * eye
    r, ri = power(s_k, .5), power(s_k, -.5)
    mh = power(ri @ power(r @ s_q @ r, T) @ ri, .5, 1e-10)
    w, u = np.linalg.eigh(mh @ s_k @ mh)
    a = hadamard(D) @ u.T @ mh
    scale = np.sqrt(np.trace(a @ s_k @ a.T) / D)
    # Free of the eigenvectors' signs: H A = U^T M^(1/2), row by row up to its sign, and A^T A.
    out["shaped.rows"] = u.T @ mh / scale
    out["shaped.gram"] = mh @ mh / scale**2
    metric = np.linalg.inv(a / scale).T @ s_q @ np.linalg.inv(a / scale)
    out["shaped.log_det"] = np.array([np.linalg.slogdet(metric * D / np.trace(metric))[1]])
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "fit.txt"), "w") as f:
        for name, values in out.items():
            f.write(name + " " + " ".join("%.12g" % x for x in np.ravel(values)) + "\n")


if __name__ == "__main__":
    main()
