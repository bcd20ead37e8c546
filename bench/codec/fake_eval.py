#!/usr/bin/env python3
"""Fake quantisation of oscar and shaped in PyTorch on one GPU: an implementation of its own, against which `oscarkv eval` is checked, and
fast enough for hundreds of retrieval prompts. It shares no code with the C++ sources: K and V are quantised and given back in floating
point, and attention is dense. Semantics as in docs/block_format.md: block 0 and the last four full blocks stay bf16, history canonical.

  bench/codec/fake_eval.py FITS BOOK[,BOOK...] TEXTS      from the repository's root; needs torch, triton, safetensors, tokenizers

FITS: folder of k_rotation_qqt_r_h_pbr.pt, v_rotation_sst_r_h_pbr.pt and codec_shaped.safetensors. BOOK: a text file; the first one is also
where numbers are hidden in, TEXTS texts of each length, five questions each.
"""
import json
import math
import random
import sys
import time

import torch
import triton
import triton.language as tl
from safetensors.torch import load_file
from tokenizers import Tokenizer
torch.backends.cuda.matmul.allow_tf32 = False
torch.manual_seed(0)
dev = 'cuda'
MD = 'models/reference/'
cfg = json.load(open(MD + 'config.json'))
W = {k: v.to(dev).float() for k, v in load_file(MD + 'model.safetensors').items()}
L, H, KV, D, HID = 8, 8, 2, 128, 384
G = H // KV
tok = Tokenizer.from_file(MD + 'tokenizer.json')
enc = lambda s: tok.encode(s, add_special_tokens=False).ids
inv = 1.0 / (cfg['rope_theta'] ** (torch.arange(0, D, 2, device=dev).double() / D))

def norm(x, w): return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
def rope(x, pos):  # x [heads, T, D]
    a = (pos.double()[:, None] * inv[None]).float(); c, s = a.cos(), a.sin()
    x1, x2 = x[..., :D // 2], x[..., D // 2:]
    return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], -1)
def bf(x): return x.to(torch.bfloat16).float()
def had(n):
    h = torch.ones(1, 1, dtype=torch.float64, device=dev)
    while len(h) < n: h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0) / math.sqrt(2)
    return h

@triton.jit
def shaped_kernel(x_ptr, F_ptr, Wn_ptr, q_ptr, n_rows, rows_per_mat, sweeps, init, R: tl.constexpr, D: tl.constexpr):
    # x: [n, D] scaled rows (levels -1.5..1.5); F[m][j][i] feedback; Wn[m][j][i] sweep factors
    pid = tl.program_id(0)
    rows = pid * R + tl.arange(0, R)
    m = (pid * R) // rows_per_mat
    idx = tl.arange(0, D)
    x = tl.load(x_ptr + rows[:, None] * D + idx[None, :])
    q = tl.load(q_ptr + rows[:, None] * D + idx[None, :])
    e = (x - q) * init
    if init == 0:
        for jj in range(D):
            j = D - 1 - jj
            f = tl.load(F_ptr + m * D * D + j * D + idx)
            sel = idx == j
            t = tl.sum(tl.where(sel[None, :], x, 0.0) + e * f[None, :], 1)
            k = tl.minimum(tl.maximum(tl.floor(t + 1.5 + 0.5), 0.0), 3.0) - 1.5
            q = tl.where(sel[None, :], k[:, None], q)
            e = tl.where(sel[None, :], x - k[:, None], e)
    for s in range(sweeps):
        for jj in range(D):
            j = D - 1 - jj
            f = tl.load(Wn_ptr + m * D * D + j * D + idx)
            sel = idx == j
            t = tl.sum(tl.where(sel[None, :], x, 0.0) + e * f[None, :], 1)
            k = tl.minimum(tl.maximum(tl.floor(t + 1.5 + 0.5), 0.0), 3.0) - 1.5
            q = tl.where(sel[None, :], k[:, None], q)
            e = tl.where(sel[None, :], x - k[:, None], e)
    tl.store(q_ptr + rows[:, None] * D + idx[None, :], q)

def choose(x, F, Wn, sweeps, q=None):  # x [m, n, D]
    m, n, _ = x.shape
    R = 16; pad = (-n) % R
    xp = torch.nn.functional.pad(x, (0, 0, 0, pad)).contiguous()
    init = 1 if q is not None else 0
    qp = torch.zeros_like(xp) if q is None else torch.nn.functional.pad(q, (0, 0, 0, pad)).contiguous()
    shaped_kernel[(m * (n + pad) // R,)](xp, F, Wn, qp, m * (n + pad), n + pad, sweeps, init, R=R, D=D, num_warps=4)
    return qp[:, :n]

def lsgrid(y):
    best = None
    ym = y.mean(-1, keepdim=True); c0 = y - ym
    mn, mx = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    for c in (.9, .75, .62):
        lo = mn * c; s = ((mx * c - lo) / 3).clamp_min(1e-8); lo = lo - ym
        for _ in range(3):
            k = ((c0 - lo) / s).round().clamp(0, 3); km = k.mean(-1, keepdim=True)
            s = ((k * c0).sum(-1, keepdim=True) / ((k * k).sum(-1, keepdim=True) - k.sum(-1, keepdim=True) * km).clamp_min(1e-8)).clamp_min(1e-8); lo = -s * km
        e = ((((c0 - lo) / s).round().clamp(0, 3) * s + lo - c0) ** 2).sum(-1, keepdim=True)
        if best is None: best = [lo, s, e]
        else: w = e < best[2]; best = [torch.where(w, a, b) for a, b in zip((lo, s, e), best)]
    return best[0] + ym, best[1]
def h16(x): return x.clamp(-65504, 65504).half().float()

def shaped_values(y, P, o):  # y [m, n, D]; P: dict F, Wn, Wm [m, D, D]; returns the decoded rows
    sym, f, gain = o.get('sym', False), P['f'], P['gain']  # [m,1,1]
    if sym: s = (y * y).mean(-1, keepdim=True).sqrt() * .996; mid = torch.zeros_like(s)
    else: lo, s = lsgrid(y); mid = lo + 1.5 * s
    s = s * f
    q = None
    Wm = P['Wm']; w1 = Wm.sum(-1)[:, None, :]; w11 = w1.sum(-1, keepdim=True)
    for it in range(1 + o.get('again', 0)):
        x = (y - mid) / s
        q = choose(x, P['F'], P['Wn'], o.get('sweeps', 2) if it == 0 else o.get('sweeps_again', 1), q)
        Wq = q @ Wm; qq = (Wq * q).sum(-1, keepdim=True); qx = (Wq * x).sum(-1, keepdim=True)
        q1 = (q * w1).sum(-1, keepdim=True); x1 = (x * w1).sum(-1, keepdim=True)
        if sym:
            al = qx / qq.clamp_min(1e-9); al = torch.where((al > .3) & (al < 3), al, 1.0); be = torch.zeros_like(al)
        else:
            det = (qq * w11 - q1 * q1).clamp_min(1e-9); al = (qx * w11 - x1 * q1) / det; be = (qq * x1 - q1 * qx) / det
            ok = (al > .3) & (al < 3) & (be.abs() <= 3); al = torch.where(ok, al, 1.0); be = torch.where(ok, be, 0.0)
        mid = mid + s * be; s = s * al
    yh = mid + s * q
    Wy = y @ Wm
    g = 1 + gain * (((y * Wy).sum(-1, keepdim=True) / (yh * Wy).sum(-1, keepdim=True).clamp_min(1e-9)).clamp(.8, 1.5) - 1)
    sc, of = h16(s * g), h16((mid - 1.5 * s) * g)
    if o.get('scale8'):  # 8-bit scale: e4m3-like with 4 mantissa bits on a log grid
        sc = torch.exp2((torch.log2(sc) * 16).round() / 16)
    return (q + 1.5) * sc + of

def oscar_values(y, clip):
    if clip < 1:
        t = y.abs().sort(-1)[0][..., int(clip * D)][..., None]; y = y.clamp(-t, t)
    lo, hi = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    s = (hi - lo).clamp_min(1e-8) / 3
    return h16(s) * ((y - lo) / s + .5).floor().clamp(0, 3) + h16(lo)

class Codec:
    """trans[l]: M [2(side), KV, D, D] rows x -> (x-mean) M; inverse-transposed for q / o."""
    def __init__(self, name, M=None, mean=None, fn=None):
        self.name = name; self.M = M; self.fn = fn; self.mean = mean
        if M is not None: self.MiT = [torch.linalg.inv(m.double()).transpose(-1, -2).float() for m in M]
    def rows(self, l, k, v):  # -> stored bf16 rows [2, KV, T, D]
        x = torch.stack([k, v])
        if self.M is None: return bf(x)
        return bf((x - self.mean[l][:, :, None, :]) @ self.M[l])
    def hist(self, l, y):
        return bf(self.fn(l, y))
    def q(self, l, q):
        if self.M is None: return q
        return (q.view(KV, G, -1, D) @ self.MiT[l][0][:, None]).view(H, -1, D)
    def out(self, l, o):  # [H, T, D]
        if self.M is None: return o
        o = o.view(KV, G, -1, D) @ self.MiT[l][1][:, None].transpose(-1, -2) + self.mean[l][1][:, None, None, :]
        return o.reshape(H, -1, D)

def attend(q, qpos0, K, V, Kh, Vh, nowin):
    """q [H,Tq,D] at positions qpos0..; K,V,Kh,Vh [KV,T,D] exact and coded; T >= qpos0+Tq."""
    Tq = q.shape[1]; outs = []; C = 512
    for a in range(0, Tq, C):
        b = min(Tq, a + C); p0, p1 = qpos0 + a, qpos0 + b
        qi = q[:, a:b].view(KV, G, b - a, D) / math.sqrt(D)
        pos = torch.arange(p0, p1, device=dev); kp = torch.arange(p1, device=dev)
        qb, kb = pos // 64, kp // 64
        causal = kp[None] <= pos[:, None]
        if Kh is None: hist = torch.zeros_like(causal)
        elif nowin: hist = kb[None] < qb[:, None]
        else: hist = (kb[None] >= 1) & (kb[None] < (qb[:, None] - 4))
        he = 0 if Kh is None else int(max(0, (p1 - 1) // 64 - (0 if nowin else 4)) * 64)  # coded keys end
        Sx = torch.einsum('hgqd,hkd->hgqk', qi, K[:, :p1])
        if he > 0:
            Sh = torch.einsum('hgqd,hkd->hgqk', qi, Kh[:, :he])
            Sx = torch.cat([torch.where(hist[:, :he], Sh, Sx[..., :he]), Sx[..., he:]], -1)
        Sx = Sx.masked_fill(~causal, -float('inf'))
        P = Sx.softmax(-1)
        o = torch.einsum('hgqk,hkd->hgqd', P.masked_fill(hist, 0) if he > 0 else P, V[:, :p1])
        if he > 0: o = o + torch.einsum('hgqk,hkd->hgqd', P[..., :he].masked_fill(~hist[:, :he], 0), Vh[:, :he])
        outs.append(o.reshape(H, b - a, D))
    return torch.cat(outs, 1)

def forward(ids, codec, nowin=False, cache=None, start=0, keep=False, observe=None):
    """ids: 1-D list; cache: per layer (rows, hist) of positions < start. Returns hidden after the final norm, cache."""
    x = W['model.embed_tokens.weight'][torch.as_tensor(ids, device=dev)]
    T = len(ids); pos = torch.arange(start, start + T, device=dev); new = []
    for l in range(L):
        p = f'model.layers.{l}.'
        h = norm(x, W[p + 'input_layernorm.weight'])
        q = (h @ W[p + 'self_attn.q_proj.weight'].T).view(T, H, D).transpose(0, 1)
        k = (h @ W[p + 'self_attn.k_proj.weight'].T).view(T, KV, D).transpose(0, 1)
        v = (h @ W[p + 'self_attn.v_proj.weight'].T).view(T, KV, D).transpose(0, 1)
        q = rope(norm(q, W[p + 'self_attn.q_norm.weight']), pos); k = rope(norm(k, W[p + 'self_attn.k_norm.weight']), pos)
        if observe: observe(l, q, k, v)
        y = codec.rows(l, k, v)
        if cache is not None: y = torch.cat([cache[l][0], y], 2)
        yh = None
        if codec.fn is not None:
            old = cache[l][1].shape[2] if cache is not None else 0
            yh = codec.hist(l, y[:, :, old:])
            if cache is not None: yh = torch.cat([cache[l][1], yh], 2)
        if keep: new.append((y, yh))
        o = attend(codec.q(l, q), start, y[0], y[1], None if yh is None else yh[0], None if yh is None else yh[1], nowin)
        o = codec.out(l, o).transpose(0, 1).reshape(T, H * D)
        x = x + o @ W[p + 'self_attn.o_proj.weight'].T
        h = norm(x, W[p + 'post_attention_layernorm.weight'])
        x = x + (torch.nn.functional.silu(h @ W[p + 'mlp.gate_proj.weight'].T) * (h @ W[p + 'mlp.up_proj.weight'].T)) @ W[p + 'mlp.down_proj.weight'].T
    return norm(x, W['model.norm.weight']), new
def logits(h): return h @ W['model.embed_tokens.weight'].T

BF = Codec('bf16')
def tables(Wm):
    C = torch.linalg.cholesky(Wm + 1e-6 * torch.eye(D, dtype=torch.float64, device=dev)); Lo = C / C.diagonal(dim1=-1, dim2=-2)[..., None, :]
    F = (Lo - torch.eye(D, dtype=torch.float64, device=dev)).transpose(-1, -2)  # F[j][i] = L_ij
    Wn = Wm.transpose(-1, -2) / Wm.diagonal(dim1=-1, dim2=-2)[..., :, None]; Wn = Wn * (1 - torch.eye(D, device=dev))
    return F.float().contiguous(), Wn.float().contiguous()
def shaped_codec(name, M, mean, Wm, f, gain, o):
    """lists per layer: M, Wm [2,KV,D,D]; mean [2,KV,D]; f, gain [2]"""
    Ps = []
    for l in range(L):
        F, Wn = tables(Wm[l].double())
        e = lambda t: t.to(dev).float().view(2, 1, 1, 1).expand(2, KV, 1, 1).reshape(4, 1, 1)
        Ps.append(dict(F=F.view(4, D, D), Wn=Wn.view(4, D, D), Wm=Wm[l].float().view(4, D, D), f=e(f[l]), gain=e(gain[l])))
    fn = lambda l, y: shaped_values(y.reshape(4, -1, D), Ps[l], o).view(y.shape)
    return Codec(name, [m.float() for m in M], [m.float() for m in mean], fn)
def shaped_file(name, path, **o):
    z = load_file(path); z = {k: v.to(dev) for k, v in z.items()}
    g = lambda l, w: torch.stack([z[f'layers.{l}.{s}.{w}'].float() for s in ('key', 'value')])
    ch = [g(l, 'choice') for l in range(L)]
    return shaped_codec(name, [g(l, 'transform') for l in range(L)], [g(l, 'mean') for l in range(L)], [g(l, 'metric') for l in range(L)], [c[:, 0] for c in ch], [c[:, 1] for c in ch], o)
def rot_codec(name, Rk, Rv, ck, cv):  # [L] of [D,D]
    M = [torch.stack([torch.stack([Rk[l]] * KV), torch.stack([Rv[l]] * KV)]).float() for l in range(L)]
    mean = [torch.zeros(2, KV, D, device=dev)] * L
    return Codec(name, M, mean, lambda l, y: torch.stack([oscar_values(y[0], ck), oscar_values(y[1], cv)]))
def naive(): I = torch.eye(D, device=dev); return rot_codec('naive', [I] * L, [I] * L, 1., 1.)
def hadamard(): I = had(D); return rot_codec('hadamard', [I] * L, [I] * L, .96, .92)
def rotations(folder):
    def matrices(path):
        layers = torch.load(path, weights_only=True)['layers']
        return [(layers[l] if l in layers else layers[str(l)])['rotation'].to(dev).float() for l in range(L)]
    return rot_codec('oscar', matrices(folder + '/k_rotation_qqt_r_h_pbr.pt'), matrices(folder + '/v_rotation_sst_r_h_pbr.pt'), .96, .92)

# ---- evaluation
def tinv(n): return {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}.get(n, 1.96 + 2.4 / n)
def jack(n, f):
    a = f(list(range(n)))
    if n < 2: return a, float('inf')
    w = [f([j for j in range(n) if j != i]) for i in range(n)]; m = sum(w) / n
    return a, tinv(n - 1) * math.sqrt(sum((v - m) ** 2 for v in w) * (n - 1) / n)
def windows_eval(ids, codecs, n=None, wlen=4096, first=600):
    """codecs: list of (label, codec, nowin). Per window: dict label -> (kl, nll, top1, p99)"""
    wins = [ids[i:i + wlen] for i in range(0, len(ids) - wlen + 1, wlen)][:n]; res = {c[0]: [] for c in codecs}; res['bf16'] = []
    for w in wins:
        tgt = torch.as_tensor(w[first + 1:], device=dev)
        lp = logits(forward(w, BF)[0][first:-1]).log_softmax(-1); p = lp.exp(); top = lp.argmax(-1)
        res['bf16'].append((0., -lp.gather(1, tgt[:, None]).mean().item(), 1., 0.))
        for lab, c, nw in codecs:
            lq = logits(forward(w, c, nowin=nw)[0][first:-1]).log_softmax(-1)
            kl = (p * (lp - lq)).sum(-1)
            res[lab].append((kl.mean().item(), -lq.gather(1, tgt[:, None]).mean().item(), (lq.argmax(-1) == top).float().mean().item(), kl.quantile(.99).item()))
    return res
def show_windows(title, res, base='oscar'):
    n = len(res['bf16']); print(f'== {title}: {n} windows', flush=True); mean = lambda lab, i, idx: sum(res[lab][j][i] for j in idx) / len(idx)
    for lab in res:
        al = list(range(n)); kl, hk = jack(n, lambda idx: mean(lab, 0, idx))
        line = f'| {lab} | {math.exp(mean(lab, 1, al)):.3f} | {kl:.4f} +- {hk:.4f} | {mean(lab, 3, al):.3f} | {mean(lab, 2, al):.4f} |'
        if base in res and lab != 'bf16':
            r = jack(n, lambda idx: mean(lab, 0, idx) / mean(base, 0, idx)); e = lambda lb, idx: math.exp(mean(lb, 1, idx))
            s = jack(n, lambda idx: (e(lab, idx) - e('bf16', idx)) / (e(base, idx) - e('bf16', idx)))
            line += f' {r[0]:.3f} +- {r[1]:.3f} | {s[0]:.3f} +- {s[1]:.3f} |'
        print(line, flush=True)
WORDS = "basalt candle harbor lantern meadow orchard pepper quartz ribbon saddle thistle velvet walnut anchor copper falcon granite hammer ivory juniper".split()
INS = "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards.\n"
def needle(book, T, seed):
    r = random.Random(seed); words = r.sample(WORDS, 5); nums = [str(r.randrange(1000000, 10000000)) for _ in words]
    ends = [i + 1 for i in range(1, len(book) - 1) if book[i] == '.' and book[i + 1] == ' ' and book[i - 1].islower()]
    want = T * 4; begin = 0
    if len(book) > want:
        a = r.randrange(max(1, min(len(book) - want, len(book) // 2))); begin = next(e for e in ends if e >= a) + 1
    rest = book[begin:]; es = [e - begin for e in ends if e > begin]; fr = [r.random() for _ in words]
    Q = lambda w: f"\nWhat is the special magic number for {w} mentioned in the provided text? The special magic number for {w} mentioned in the provided text is"
    def hide(n):
        e = [x for x in es if x < n - 1]; out = INS; done = 0
        for i, w in enumerate(words):
            lo = len(e) * i // 5; hi = max(lo + 1, len(e) * (i + 1) // 5); at = e[min(lo + int(fr[i] * (hi - lo)), len(e) - 1)] if e else n
            out += rest[done:at] + f" One of the special magic numbers for {w} is: {nums[i]}."; done = at
        return out + rest[done:n]
    lo, hi = 0, min(len(rest), T * 8)
    while lo < hi:
        mid = (lo + hi + 1) // 2; n = len(enc(hide(mid) + Q(words[0])))
        if n <= T - 16: lo = mid; 
        else: hi = mid - 1
        if T - 24 <= n <= T - 16: break
    t = hide(lo); return [(enc(t + Q(w)), enc(' ' + x)) for w, x in zip(words, nums)]
def ask(qs, codec, nowin=False):
    sh = min(len(q) for q, _ in qs) - 1
    for q, _ in qs:
        i = 0
        while i < sh and q[i] == qs[0][0][i]: i += 1
        sh = min(sh, i)
    sh = sh // 64 * 64
    _, cache = forward(qs[0][0][:sh], codec, nowin, keep=True)
    out = []
    for q, a in qs:
        h, _ = forward((q + a)[sh:], codec, nowin, cache=cache, start=sh)
        lg = logits(h[len(q) - 1 - sh:len(q) + len(a) - 1 - sh])
        out.append(int((lg.argmax(-1) == torch.as_tensor(a, device=dev)).all()))
    return out
def needles_eval(book, codecs, lengths, texts, seed):
    res = {'bf16': {}}; res.update({c[0]: {} for c in codecs})
    for T in lengths:
        for r in res.values(): r[T] = []
        for i in range(texts):
            qs = needle(book, T, seed * 1000003 + T * 1000 + i)
            for lab, c, nw in [('bf16', BF, False)] + codecs: res[lab][T].append(ask(qs, c, nw))
    return res
def merge(a, b): return {k: {T: a[k].get(T, []) + b[k].get(T, []) for T in set(a[k]) | set(b[k])} for k in a}
def show_needles(title, res, base='oscar'):
    print('== needles', title)
    for lab in res:
        cells = []; tot = 0; n = 0
        for T in sorted(res[lab]):
            a = [x for t in res[lab][T] for x in t]; cells.append(f'{T}: {sum(a)}/{len(a)}'); tot += sum(a); n += len(a)
        line = f'| {lab} | ' + ' | '.join(cells) + f' | all {tot}/{n} {tot / n:.4f} |'
        for b in (base, 'bf16'):
            if b == lab: continue
            X = [t for T in sorted(res[lab]) for t in res[lab][T]]; Y = [t for T in sorted(res[b]) for t in res[b][T]]
            d = jack(len(X), lambda idx: sum(sum(X[i]) - sum(Y[i]) for i in idx) / sum(len(X[i]) for i in idx))
            on = sum(x > y for s, t in zip(X, Y) for x, y in zip(s, t)); of = sum(x < y for s, t in zip(X, Y) for x, y in zip(s, t))
            line += f' vs {b}: +{on} -{of}, {d[0]:+.4f} +- {d[1]:.4f} |'
        print(line, flush=True)

def main():
    folder, books, count = sys.argv[1], sys.argv[2].split(','), int(sys.argv[3])
    osc, fit = rotations(folder), folder + '/codec_shaped.safetensors'
    shaped, sym = shaped_file('shaped', fit), shaped_file('shaped-sym', fit, sym=True)
    plain = [('naive', naive(), False), ('hadamard', hadamard(), False)]
    kept = [('oscar', osc, False), ('oscar, shipped', rotations('models/reference'), False), ('shaped', shaped, False), ('shaped-sym', sym, False),
            ('shaped-0', shaped_file('shaped-0', fit, sweeps=0), False)]
    bare = [('oscar', osc, True), ('hadamard', hadamard(), True), ('shaped', shaped, True), ('shaped-sym', sym, True)]
    for path in books:
        ids = enc(open(path, encoding='utf-8').read())
        show_windows(path, windows_eval(ids, plain + kept))
        show_windows(path + ', no windows', windows_eval(ids, bare))
    book = open(books[0], encoding='utf-8').read()
    main_ones = [c for c in kept if c[0] in ('oscar', 'shaped', 'shaped-sym')]
    short = needles_eval(book, plain + main_ones, [2048, 4096], count, 5)
    show_needles(books[0] + ', short', short)
    long = needles_eval(book, main_ones, [8192, 16384], count, 5)
    show_needles(books[0], merge({k: v for k, v in short.items() if k in long}, long))


if __name__ == '__main__':
    main()
