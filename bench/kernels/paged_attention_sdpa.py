"""One decode token through torch's fused attention: what the CUDA kernel is compared with.

Backends flash and cuDNN, contiguous bf16 K and V, kv heads not expanded; graph replay over several
sets of K and V (together several times the L2), median. Needs torch and a GPU.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CASES = [  # name, batch, context, kv heads, group, head_dim
    ("b32 32K G1", 32, 32768, 8, 1, 128),
    ("b1 8K", 1, 8192, 8, 4, 128),
    ("b1 32K", 1, 32768, 8, 4, 128),
    ("b1 128K", 1, 131072, 8, 4, 128),
    ("b8 8K", 8, 8192, 8, 4, 128),
    ("b8 32K", 8, 32768, 8, 4, 128),
    ("b8 128K", 8, 131072, 8, 4, 128),
    ("b32 8K", 32, 8192, 8, 4, 128),
    ("b32 32K", 32, 32768, 8, 4, 128),
    ("b32 128K", 32, 131072, 8, 4, 128),
    ("b32 32K G8", 32, 32768, 8, 8, 128),
    ("b32 32K G16", 32, 32768, 8, 16, 128),
    ("b32 32K d64", 32, 32768, 8, 4, 64),
    ("b128 8K", 128, 8192, 8, 4, 128),
]


def measure(batch, context, kv_heads, group, head_dim, backend):
    """Microseconds of one attention call."""
    size = 4 * batch * kv_heads * context * head_dim
    sets = max(2, min(36, int(400e6 / size)))

    def tensor(heads, tokens):
        return torch.randn(batch, heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16)

    q = tensor(kv_heads * group, 1)
    kv = [(tensor(kv_heads, context), tensor(kv_heads, context)) for _ in range(sets)]

    def step():
        with sdpa_kernel(backend):
            for k, v in kv:
                torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=group > 1)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for i in range(13):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) * 1000 / sets)
    return sorted(times)[len(times) // 2]


def main():
    print("torch", torch.__version__, torch.cuda.get_device_name())
    print("| case | flash us | cuDNN us |\n|---|---|---|")
    for name, *shape in CASES:
        row = []
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            try:
                row.append("%.1f" % measure(*shape, backend))
            except RuntimeError as error:
                row.append(str(error).split("\n", maxsplit=1)[0][:60])
            torch.cuda.empty_cache()
        print("|", name, "|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
