"""The allowed directions between rooms, and the one home of each third-party header (README: the map of folders).

Run as a test: exits 1 and names every include that breaks a rule.
"""
import re
import subprocess
import sys

ALL = {"common", "proto", "kernels", "codec", "model", "eval", "transport", "kvstore", "worker", "prefill_worker",
       "attention_worker", "gateway", "cli"}
# room -> rooms whose headers it may include (itself always).
ALLOWED = {
    "common": set(),
    "kernels": set(),
    "codec": {"common", "kernels"},
    "model": {"common", "kernels", "codec"},
    "eval": {"common", "kernels", "codec", "model"},
    "transport": {"common"},
    "kvstore": {"common", "transport", "proto"},
    "worker": {"common", "kernels", "codec", "model", "eval", "transport", "kvstore", "proto"},
    "prefill_worker": {"common", "kernels", "codec", "model", "eval", "transport", "kvstore", "worker", "proto"},
    "attention_worker": {"common", "kernels", "codec", "model", "eval", "transport", "kvstore", "worker", "proto"},
    "gateway": {"common", "kvstore", "model", "kernels", "proto", "transport"},
    "cli": ALL,
    "tests": ALL | {"tests"},
    "bench": ALL | {"bench", "tests"},
}
# Inside kvstore: what others may not see.
KVSTORE_PARTS = {"tier": {"tier"}, "core": {"core", "tier"}, "client": {"client", "cluster", "core"}, "cluster": {"cluster"},
                 "repair": {"repair", "core", "cluster", "client"}, "server": {"core", "server", "cluster", "tier", "repair", "client"}}
# Files of these rooms may be included by the gateway only so far.
GATEWAY_ONLY = {"model": ("model/tokenizer.h", "model/model_config.h", "model/sampler.h", "model/utf8.h",
                          "model/bounded_json.h", "model/chat_template.h"),
                "kernels": ("kernels/layout.h",), "transport": ("transport/transport.h",),
                "kvstore": ("kvstore/client/", "kvstore/types.h", "kvstore/block_key.h")}
# third-party prefix -> regular expressions of files that may include it.
HOMES = {
    r"ucp/|uct/|ucs/": [r"^transport/ucx/", r"^tests/unit/transport/", r"^bench/transport/"],
    r"grpcpp/": [r"^common/rpc/", r"_service\.(cc|h)$", r"_server\.(cc|h)$", r"_stub\.(cc|h)$", r"^cli/", r"^tests/", r"^bench/"],
    r"rocksdb/": [r"^kvstore/tier/rocksdb_store\.cc$"],
    r"prometheus/": [r"^common/metrics_server\.cc$"],
    r"spdlog/": [r"^common/log\.cc$"],
    r"CLI/": [r"^cli/main\.cc$", r"^bench/"],
    r"cuda|cublas|cudnn": [r"^(bench/|tests/unit/)?kernels/", r"^model/cuda/", r"^transport/ucx/", r"^common/device/"],
    r"hwy/|oneapi/": [r"^kernels/", r"^tests/unit/kernels/"],
    r"absl/": [r"^(?!kernels/)"],
    r"Eigen/": [r"^codec/fit\.cc$"],
    r"openssl/": [r"^common/"],
    r"boost/": [r"^common/http/"],
}


def main():
    files = subprocess.run(["git", "ls-files", "*.h", "*.cc", "*.cu", "*.cuh"], capture_output=True, text=True,
                           check=True).stdout.split()
    errors = []
    for path in files:
        room = path.split("/")[0]
        with open(path, encoding="utf-8") as f:
            text = f.read()
        if re.search(r"\bgetenv\s*\(", text) and not path.startswith(("tests/", "bench/")):
            errors.append(f"{path}: getenv (options come from option tables)")
        for kind, name in re.findall(r'^\s*#include\s+([<"])([^">]+)[">]', text, re.M):
            errors += check(path, room, name, kind == '"')
    print("\n".join(errors) or f"{len(files)} files keep the directions")
    return 1 if errors else 0


def check(path, room, name, quoted):
    for prefix, homes in HOMES.items():
        if re.match(prefix, name) and not any(re.search(h, path) for h in homes):
            return [f"{path}: includes <{name}>, whose home is {homes}"]
    if not quoted:
        return []
    target = name.split("/")[0]
    if target == "oscarkv" or name.startswith(("grpc/health/", "etcd/")):
        target = "proto"
    if target not in ALL | {"tests", "bench"} or target == room:
        part, own = name.split("/")[1:2], path.split("/")[1:2]
        if target == room == "kvstore" and part and own and own[0] in KVSTORE_PARTS and part[0] in KVSTORE_PARTS:
            if part[0] not in KVSTORE_PARTS[own[0]]:
                return [f"{path}: kvstore/{own[0]} may not include {name}"]
        return []
    if target not in ALLOWED.get(room, set()):
        return [f"{path}: {room} may not include {name}"]
    if room == "gateway" and target in GATEWAY_ONLY and not name.startswith(GATEWAY_ONLY[target]):
        return [f"{path}: the gateway may use only {GATEWAY_ONLY[target]} of {target}, not {name}"]
    if target == "proto" and "generated" in path:
        return []
    return []


if __name__ == "__main__":
    sys.exit(main())
