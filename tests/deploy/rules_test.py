"""The alert rules, by promtool: each fires on what it is for, alone, and is quiet just below."""
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import yaml
from reference import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import prometheus_rule  # noqa: E402

RULES = ROOT / "deploy/prometheus/oscarkv.rules.yaml"
ALERTS = [r["alert"] for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"]]
GATEWAY_UP = 'up{job="oscarkv", component="gateway", instance="g"} 1x60'


def line(series, values):
    return f"{series} {values}"


def counter(series, per_minute):
    """An hour of a counter."""
    return line(series, f"0+{per_minute}x60")


def constant(series, value):
    return line(series, f"{value}x60")


def histogram(name, below, above):
    """Observations per minute: `below` of at most 1, `above` between 1000 and 2000."""
    return [counter(f'{name}_bucket{{le="1"}}', below), counter(f'{name}_bucket{{le="1000"}}', below),
            counter(f'{name}_bucket{{le="2000"}}', below + above), counter(f'{name}_bucket{{le="+Inf"}}', below + above)]


def requests(ok, code, bad):
    return [counter('oscarkv_gateway_requests_total{code="OK"}', ok), counter(f'oscarkv_gateway_requests_total{{code="{code}"}}', bad)]


def put(role, code, per_minute):
    return counter(f'oscarkv_worker_blocks_total{{role="{role}", op="put", code="{code}"}}', per_minute)


def of_capacity(metric, value):
    return [constant(f'{metric}{{node="n"}}', value), constant('oscarkv_kvstore_capacity_bytes{node="n"}', 100)]


# alert: (series on which it fires, series on which nothing does)
CASES = {
    "OscarkvTargetDown": ([constant('up{job="oscarkv", component="kvstore", instance="k"}', 0)],
                          [constant('up{job="other", instance="k"}', 0)]),
    "OscarkvNoUsableWorker": ([constant('oscarkv_gateway_worker_up{role="prefill", endpoint="a"}', 0)],
                              [constant('oscarkv_gateway_worker_up{role="prefill", endpoint="a"}', 0),
                               constant('oscarkv_gateway_worker_up{role="prefill", endpoint="b"}', 1)]),
    "OscarkvWorkerFails": ([counter('oscarkv_gateway_worker_failures_total{role="prefill", endpoint="a"}', 1)],
                           [counter('oscarkv_gateway_worker_failures_total{role="prefill", endpoint="a"}', 0.4)]),
    "OscarkvStoreNodeUnreachable": ([constant('oscarkv_kvstore_client_node_up{peer="a", instance="1"}', 1),
                                     constant('oscarkv_kvstore_client_node_up{peer="a", instance="2"}', 0)],
                                    [line('oscarkv_kvstore_client_node_up{peer="a"}', "1x43 0 1x15")]),
    "OscarkvUnderReplicated": ([constant('oscarkv_kvstore_under_replicated_blocks{node="n", state="waiting"}', 5)],
                               [constant('oscarkv_kvstore_under_replicated_blocks{node="n", state="no_room"}', 5),
                                constant('oscarkv_kvstore_under_replicated_blocks{node="n", state="waiting"}', 0)]),
    "OscarkvCorruptBlocks": ([line('oscarkv_kvstore_corrupt_blocks_total{found="put"}', "0x35 1x24")],
                             [constant('oscarkv_kvstore_corrupt_blocks_total{found="put"}', 5)]),
    "OscarkvSsdErrors": ([line('oscarkv_kvstore_ssd_errors_total{op="write", code="unavailable"}', "0x35 1x24")],
                         [constant('oscarkv_kvstore_ssd_errors_total{op="write", code="unavailable"}', 5)]),
    "OscarkvSsdCorruptBlocks": ([line('oscarkv_kvstore_ssd_corrupt_blocks_total{found="read"}', "0x35 1x24")],
                                [constant('oscarkv_kvstore_ssd_corrupt_blocks_total{found="read"}', 5)]),
    "OscarkvMalformedMessages": ([line('oscarkv_transport_malformed_messages_total{lane="tcp"}', "0x35 1x24")],
                                 [constant('oscarkv_transport_malformed_messages_total{lane="tcp"}', 5)]),
    "OscarkvProfilesDiffer": ([constant('oscarkv_worker_kv_compression_ratio{role="prefill"}', 7.1),
                               constant('oscarkv_worker_kv_compression_ratio{role="attention"}', 1)],
                              [constant('oscarkv_worker_kv_compression_ratio{role="prefill"}', 7.1),
                               constant('oscarkv_worker_kv_compression_ratio{role="attention"}', 7.1)]),
    "OscarkvCertificateEnds": ([constant('oscarkv_tls_certificate_expires_seconds{file="tls-cert", name="a"}', 13 * 86400)],
                               [constant('oscarkv_tls_certificate_expires_seconds{file="tls-cert", name="a"}', 15 * 86400),
                                line('oscarkv_tls_certificate_expires_seconds{file="tls-cert", name="gone"}', "NaN " * 60)]),
    "OscarkvCertificateEndsNow": ([constant('oscarkv_tls_certificate_expires_seconds{file="tls-ca", name="a"}', -1)],
                                  [constant('oscarkv_tls_certificate_expires_seconds{file="tls-ca", name="a"}', 14 * 86400)]),
    "OscarkvCallersRefused": ([counter('oscarkv_auth_refused_total{code="UNAUTHENTICATED"}', 31)],
                              [counter('oscarkv_auth_refused_total{code="UNAUTHENTICATED"}', 29)]),
    "OscarkvHttpLimits": ([counter('oscarkv_gateway_http_refused_total{reason="tls"}', 31)],
                          [counter('oscarkv_gateway_http_refused_total{reason="tls"}', 29)]),
    "OscarkvDataPathRefused": ([counter('oscarkv_transport_refused_total{lane="tcp", what="hello"}', 2)],
                               [counter('oscarkv_transport_refused_total{lane="tcp", what="hello"}', 1)]),
    "OscarkvErrors": (requests(98, "UNAVAILABLE", 2), requests(50, "CANCELLED", 50)),
    "OscarkvRefusals": (requests(94, "RESOURCE_EXHAUSTED", 6), requests(96, "RESOURCE_EXHAUSTED", 4)),
    "OscarkvQueueAge": ([constant("oscarkv_gateway_queue_age_seconds", 31)], [constant("oscarkv_gateway_queue_age_seconds", 30)]),
    "OscarkvPrefillQueueAge": ([constant("oscarkv_prefill_queue_age_seconds", 31)],
                               [constant("oscarkv_prefill_queue_age_seconds", 30)]),
    "OscarkvAttentionQueueAge": ([constant("oscarkv_attention_queue_age_seconds", 31)],
                                 [line("oscarkv_attention_queue_age_seconds", "31x43 0 31x15")]),
    "OscarkvSlowFirstToken": (histogram("oscarkv_gateway_ttft_seconds", 90, 10), histogram("oscarkv_gateway_ttft_seconds", 96, 4)),
    "OscarkvSlowTokens": ([counter('oscarkv_gateway_tpot_seconds_bucket{le="0.5"}', 90),
                           counter('oscarkv_gateway_tpot_seconds_bucket{le="+Inf"}', 100),
                           counter('oscarkv_gateway_tpot_seconds_bucket{le="1"}', 100)],
                          [counter('oscarkv_gateway_tpot_seconds_bucket{le="0.5"}', 96),
                           counter('oscarkv_gateway_tpot_seconds_bucket{le="+Inf"}', 100)]),
    "OscarkvPreemptions": ([counter("oscarkv_attention_preemptions_total", 1)], [counter("oscarkv_attention_preemptions_total", 0.5)]),
    "OscarkvPutsRefused": ([counter('oscarkv_kvstore_puts_total{outcome="committed"}', 98),
                            counter('oscarkv_kvstore_puts_total{outcome="refused"}', 2)],
                           [counter('oscarkv_kvstore_puts_total{outcome="committed"}', 99.5),
                            counter('oscarkv_kvstore_puts_total{outcome="refused"}', 0.5)]),
    "OscarkvShortCacheLife": (histogram("oscarkv_kvstore_eviction_age_seconds", 60, 40),
                              histogram("oscarkv_kvstore_eviction_age_seconds", 40, 60)),
    "OscarkvPinnedMemory": (of_capacity("oscarkv_kvstore_pinned_bytes", 51), of_capacity("oscarkv_kvstore_pinned_bytes", 50)),
    "OscarkvAbandonedPuts": (of_capacity("oscarkv_kvstore_reserved_bytes", 15) +
                             [constant('oscarkv_kvstore_quarantined_bytes{node="n"}', 6)],
                             of_capacity("oscarkv_kvstore_reserved_bytes", 15) +
                             [constant('oscarkv_kvstore_quarantined_bytes{node="n"}', 5)]),
    "OscarkvBlocksNotStored": ([counter("oscarkv_prefill_blocks_not_stored_total", 8)],
                               [counter("oscarkv_prefill_blocks_not_stored_total", 6)]),
    "OscarkvDroppedPuts": ([counter("oscarkv_attention_dropped_puts_total", 4), put("attention", "DEADLINE_EXCEEDED", 4)],
                           [counter("oscarkv_attention_dropped_puts_total", 3), put("attention", "DEADLINE_EXCEEDED", 3),
                            put("attention", "OK", 90), put("attention", "ALREADY_EXISTS", 90), put("prefill", "UNAVAILABLE", 90)]),
    "OscarkvDataPathDegraded": ([constant('oscarkv_kvstore_client_degraded{peer="a"}', 1)],
                                [constant('oscarkv_kvstore_client_degraded{peer="a"}', 0)]),
    "OscarkvSlowerLane": ([line("oscarkv_transport_degraded_connections_total", "0x35 1x24")],
                          [constant("oscarkv_transport_degraded_connections_total", 3)]),
    "OscarkvTransferErrors": ([counter('oscarkv_transport_errors_total{lane="tcp", code="UNAVAILABLE"}', 2)],
                              [counter('oscarkv_transport_errors_total{lane="tcp", code="UNAVAILABLE"}', 0.9)]),
}


def case(name, series, firing):
    """45 minutes in, exactly `firing` fires."""
    parsed = [dict(zip(("series", "values"), s.rsplit("} ", 1) if "} " in s else s.split(" ", 1))) for s in series]
    for p in parsed:
        p["series"] += "}" if "{" in p["series"] else ""
    expected = [{"labels": f'{{alertname="{firing}"}}', "value": 1}] if firing else []
    return {"name": name, "interval": "1m", "input_series": parsed, "promql_expr_test": [
        {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "45m", "exp_samples": expected}]}


class Rules(unittest.TestCase):
    def setUp(self):
        self.promtool = shutil.which("promtool")

    def run_promtool(self, *args):
        if self.promtool is None:
            self.skipTest("promtool is not installed (Debian: prometheus; ./test installs it)")
        run = subprocess.run([self.promtool, *map(str, args)], capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_the_operators_form_is_current(self):
        self.assertEqual((RULES.parent / "prometheus-rule.yaml").read_text(), prometheus_rule.text(),
                         "run scripts/prometheus_rule.py")

    def test_rules_and_example_config_are_valid(self):
        self.run_promtool("check", "rules", RULES)
        self.run_promtool("check", "config", RULES.parent / "prometheus.yaml")
        with tempfile.TemporaryDirectory() as folder:  # the files that the secured one names are the operator's
            for file in (RULES, RULES.parent / "prometheus-secure.yaml"):
                shutil.copy(file, folder)
            for file in ("ca.crt", "prometheus.token"):
                Path(folder, file).touch()
            self.run_promtool("check", "config", Path(folder, "prometheus-secure.yaml"))

    def test_every_alert_was_provoked(self):
        """docs/runbooks.md has a table of what was done in a cluster until it fired."""
        table = (ROOT / "docs/runbooks.md").read_text().split("## Provoked for real")[1]
        rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \|", table, re.M)
        self.assertEqual(sorted(name for name, _ in rows), sorted(ALERTS))
        self.assertEqual([link for _, link in rows], [name.lower() for name, _ in rows])

    def test_every_alert_fires_and_is_quiet(self):
        self.assertEqual(set(ALERTS), set(CASES) | {"OscarkvGatewayAbsent"})
        tests = [case("all is well", [GATEWAY_UP], None),
                 case("no gateway", [GATEWAY_UP.replace("1x60", "1x30 0x30")], None)]
        tests[1]["promql_expr_test"][0]["exp_samples"] = [
            {"labels": f'{{alertname="{a}"}}', "value": 1} for a in ("OscarkvGatewayAbsent", "OscarkvTargetDown")]
        for alert, (fires, quiet) in CASES.items():
            tests.append(case(f"{alert} fires", [GATEWAY_UP, *fires], alert))
            tests.append(case(f"{alert} is quiet", [GATEWAY_UP, *quiet], None))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "test.yaml")
            path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
            self.run_promtool("test", "rules", path)


if __name__ == "__main__":
    unittest.main(verbosity=2)
