"""deploy/k8s holds together: options, metrics, labels, ports, probes, resources, endpoints, drain times, policies. Runs offline."""
import json
import re
import shutil
import subprocess
import unittest

import kustomize
import yaml
from reference import ROOT, check_value, config_lines, metrics, metrics_of_expression, options, seconds, size

OVERLAYS = ("cpu", "cuda", "rdma", "dev", "secure")
# Made by whoever deploys (deploy/k8s/README.md), with these keys.
SECRETS = {"oscarkv-tls": {"tls.crt", "tls.key", "ca.crt"}, "oscarkv-auth": {"auth"},
           "oscarkv-metrics": {"ca.crt", "token"}}
ROLES = ("kvstore", "prefill", "attention", "gateway")
PORTS = {"gateway": 7400, "kvstore": 7401, "prefill": 7402, "attention": 7403}
METRICS_PORT = 9400
HTTP_PORT = 7480
# Labels that Prometheus or the PodMonitor add to every series.
TARGET_LABELS = {"namespace", "pod", "instance", "job", "component", "le"}
QUANTITIES = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(value):
    match = re.fullmatch(r"([\d.]+)(\w*)", str(value))
    return float(match[1]) * QUANTITIES[match[2]]


class Overlay:
    def __init__(self, name):
        self.name = name
        self.objects = kustomize.build(ROOT / "deploy/k8s/overlays" / name)

    def of(self, *kinds):
        return [o for o in self.objects if o["kind"] in kinds]

    def get(self, kind, name):
        found = [o for o in self.of(kind) if o["metadata"]["name"] == name]
        if not found:
            raise AssertionError(f"{self.name}: no {kind} {name}")
        return found[0]

    def workloads(self):
        return self.of("StatefulSet", "Deployment")

    def roles(self):
        """(role, workload, container)"""
        for o in self.workloads():
            role = o["metadata"]["labels"]["app.kubernetes.io/component"]
            if role in ROLES:
                yield role, o, kustomize.containers(o)[0]

    def endpoints(self):
        return self.get("ConfigMap", "oscarkv-endpoints")["data"]

    def effective(self, role, container):
        """{option: value} as the process sees them: the config file, then the arguments."""
        given = config_lines(self.get("ConfigMap", "oscarkv-config")["data"][f"{role}.conf"])
        for arg in container["args"][1:]:
            name, equals, value = arg.removeprefix("--").partition("=")
            given[name] = re.sub(r"\$\((\w+)\)", lambda m: self.endpoints().get(m[1], "a-pod"), value) if equals else "true"
        return given


def matches(selector, labels):
    return all(labels.get(k) == v for k, v in selector.items())


def probed(probe):
    """What a probe asks for, by the kubelet or, where it would need TLS, by `oscarkv health`."""
    if "grpc" in probe:
        return probe["grpc"]
    assert set(probe) >= {"exec"} and probe["exec"]["command"][:2] == ["oscarkv", "health"], probe
    given = dict(a.removeprefix("--").split("=", 1) for a in probe["exec"]["command"][2:])
    for name, value in given.items():
        check_value(options()["health"][name]["allowed"], value)
    host, _, port = given["address"].rpartition(":")
    assert host == "127.0.0.1", probe
    return {"port": int(port), **({"service": given["service"]} if "service" in given else {})}


class EveryOverlay:
    """The tests of one overlay: a class of each is made below."""

    @classmethod
    def setUpClass(cls):
        cls.overlay = Overlay(cls.__name__.lower())

    def pods(self, overlay):
        return [o["spec"]["template"]["metadata"]["labels"] for o in overlay.workloads()]

    def test_every_role_is_there(self):
        overlay = self.overlay
        self.assertEqual(sorted(r for r, _, _ in overlay.roles()), sorted(ROLES))

    def test_options_exist_and_have_allowed_values(self):
        known = options()
        overlay = self.overlay
        for role, _, container in overlay.roles():
            self.assertEqual(container["args"][:2], [role, f"--config=/etc/oscarkv/{role}.conf"])
            for name, value in overlay.effective(role, container).items():
                if name == "config":
                    continue
                self.assertIn(name, known[role], f"oscarkv {role} has no such option")
                check_value(known[role][name]["allowed"], value)

    def test_variables_in_arguments_are_defined(self):
        overlay = self.overlay
        for _, _, container in overlay.roles():
            defined = {e["name"] for e in container.get("env", [])}
            for source in container.get("envFrom", []):
                defined |= set(overlay.get("ConfigMap", source["configMapRef"]["name"])["data"])
            for arg in container["args"]:
                self.assertLessEqual(set(re.findall(r"\$\((\w+)\)", arg)), defined, arg)

    def test_selectors_match_labels(self):
        overlay = self.overlay
        for o in overlay.workloads():
            labels = o["spec"]["template"]["metadata"]["labels"]
            self.assertTrue(matches(o["spec"]["selector"]["matchLabels"], labels))
            for spread in o["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                self.assertTrue(matches(spread["labelSelector"]["matchLabels"], labels))
        for o in overlay.of("Service"):
            self.assertEqual(sum(matches(o["spec"]["selector"], p) for p in self.pods(overlay)), 1, o["metadata"])
        for o in overlay.of("PodDisruptionBudget"):
            self.assertEqual(sum(matches(o["spec"]["selector"]["matchLabels"], p) for p in self.pods(overlay)), 1)
        for o in overlay.of("NetworkPolicy"):
            self.assertTrue(any(matches(o["spec"]["podSelector"].get("matchLabels", {}), p) for p in self.pods(overlay)))
        for o in overlay.of("PodMonitor"):
            found = [p for p in self.pods(overlay) if matches(o["spec"]["selector"]["matchLabels"], p)]
            self.assertEqual(len(found), len(ROLES))

    def test_references_exist(self):
        overlay = self.overlay
        for o in overlay.workloads():
            pod = o["spec"]["template"]["spec"]
            if "serviceAccountName" in pod:
                overlay.get("ServiceAccount", pod["serviceAccountName"])
            if o["kind"] == "StatefulSet":
                overlay.get("Service", o["spec"]["serviceName"])
            claims = {c["metadata"]["name"] for c in o["spec"].get("volumeClaimTemplates", [])}
            for volume in pod.get("volumes", []):
                if "configMap" in volume:
                    overlay.get("ConfigMap", volume["configMap"]["name"])
                if "secret" in volume:
                    self.assertIn(volume["secret"]["secretName"], SECRETS)
                    self.assertEqual(volume["secret"]["defaultMode"], 0o440)
                if "persistentVolumeClaim" in volume:
                    overlay.get("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            names = claims | {v["name"] for v in pod.get("volumes", [])}
            for container in kustomize.containers(o):
                self.assertLessEqual({m["name"] for m in container.get("volumeMounts", [])}, names)
        for o in overlay.of("HorizontalPodAutoscaler"):
            overlay.get(o["spec"]["scaleTargetRef"]["kind"], o["spec"]["scaleTargetRef"]["name"])
        for o in overlay.of("RoleBinding"):
            overlay.get("Role", o["roleRef"]["name"])

    def test_the_model_is_where_the_volume_or_the_image_has_it(self):
        overlay = self.overlay
        for role, o, container in overlay.roles():
            if role == "kvstore":
                continue
            folder = overlay.effective(role, container)["model"]
            mounted = [m["mountPath"] for m in container["volumeMounts"]]
            self.assertTrue(folder == "/usr/share/oscarkv/models/reference" or any(folder.startswith(m + "/") for m in mounted))

    def test_ports(self):
        overlay = self.overlay
        for role, o, container in overlay.roles():
            given = overlay.effective(role, container)
            ports = {p["name"]: p["containerPort"] for p in container["ports"]}
            http = {"http": HTTP_PORT} if role == "gateway" else {}
            self.assertEqual(ports, {"grpc": PORTS[role], "metrics": METRICS_PORT, **http})
            self.assertEqual(given["listen"], f"0.0.0.0:{PORTS[role]}")
            self.assertEqual(given["metrics-listen"], f"0.0.0.0:{METRICS_PORT}")
            service = overlay.get("Service", f"oscarkv-{role}")
            self.assertEqual([(p["port"], p["targetPort"]) for p in service["spec"]["ports"]],
                             [(PORTS[role], "grpc"), *((p, "http") for p in http.values())])
            if http:
                self.assertEqual(given["http-listen"], f"0.0.0.0:{HTTP_PORT}")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                self.assertEqual(probed(container[probe])["port"], PORTS[role])
            self.assertNotIn("service", probed(container["readinessProbe"]))
        for o in overlay.of("PodMonitor"):
            self.assertEqual([e["port"] for e in o["spec"]["podMetricsEndpoints"]], ["metrics"])

    def test_the_gateways_liveness_does_not_depend_on_workers(self):
        overlay = self.overlay
        container = kustomize.containers(overlay.get("Deployment", "oscarkv-gateway"))[0]
        self.assertEqual(probed(container["livenessProbe"]).get("service"), "liveness")
        self.assertIn('"liveness"', (ROOT / "gateway/gateway_server.cc").read_text())

    def test_resources_add_up(self):
        overlay = self.overlay
        for o in overlay.workloads():
            for container in kustomize.containers(o):
                requests, limits = container["resources"]["requests"], container["resources"]["limits"]
                self.assertIn("memory", limits)
                for name, value in limits.items():
                    if name in requests:
                        self.assertLessEqual(quantity(requests[name]), quantity(value), name)
                    if "/" in name or name.startswith("hugepages"):  # extended resources are not overcommitted
                        self.assertEqual(requests.get(name), value)
        for role, o, container in overlay.roles():
            given, limits = overlay.effective(role, container), container["resources"]["limits"]
            memory = quantity(limits["memory"])
            if role == "kvstore":
                huge = quantity(limits.get("hugepages-2Mi", 0))
                self.assertEqual(given["huge-pages"], "true" if huge else "false")
                if huge:
                    self.assertEqual(size(given["capacity"]), huge)
                else:
                    self.assertLessEqual(size(given["capacity"]) * 1.1, memory)
            elif role != "gateway":
                weights = o["spec"]["template"]["metadata"]["annotations"]["oscarkv.io/model-memory"]
                self.assertLessEqual(size(given["page-pool"]) + size(given["block-pool"]) + quantity(weights), memory)
                self.assertLessEqual(int(given["threads"]), max(1, quantity(container["resources"]["requests"]["cpu"])))

    def test_endpoints_name_every_pod(self):
        overlay = self.overlay
        most = {r: o["spec"]["replicas"] for r, o, _ in overlay.roles()}
        autoscaled = {o["spec"]["scaleTargetRef"]["name"].removeprefix("oscarkv-"): o["spec"] for o in
                      overlay.of("HorizontalPodAutoscaler")}
        for role, spec in autoscaled.items():
            self.assertLessEqual(spec["minReplicas"], most[role])
            self.assertGreaterEqual(spec["maxReplicas"], most[role])
            most[role] = spec["maxReplicas"]
        for key, role in (("NODES", "kvstore"), ("PREFILL", "prefill"), ("ATTENTION", "attention")):
            want = [f"oscarkv-{role}-{i}.oscarkv-{role}:{PORTS[role]}" for i in range(most[role])]
            self.assertEqual(overlay.endpoints()[key].split(","), want)

    def test_pods_may_finish_their_drain(self):
        overlay = self.overlay
        for role, o, container in overlay.roles():
            drain = seconds(overlay.effective(role, container).get("drain-timeout", "0s"))
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            self.assertEqual(hook[0], "sleep")
            # 20 s: two store calls, with which an attention worker hands over what is left, the server's own second, and room.
            grace = o["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            self.assertGreaterEqual(grace, drain + int(hook[1]) + 20, role)
        gateway = overlay.effective("gateway", kustomize.containers(overlay.get("Deployment", "oscarkv-gateway"))[0])
        deadline = options()["gateway"]["default-deadline"]["default"]
        self.assertGreaterEqual(seconds(gateway["drain-timeout"]), seconds(deadline))

    def test_least_privilege(self):
        overlay = self.overlay
        for o in overlay.workloads():
            pod = o["spec"]["template"]["spec"]
            self.assertFalse(pod["automountServiceAccountToken"])
            self.assertFalse(pod["enableServiceLinks"])
            for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
                self.assertNotIn(forbidden, pod)
            self.assertFalse([v for v in pod.get("volumes", []) if "hostPath" in v])
            context = pod["securityContext"]
            self.assertTrue(context["runAsNonRoot"])
            self.assertGreater(context["runAsUser"], 0)
            self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
            for container in kustomize.containers(o):
                own = container["securityContext"]
                self.assertTrue(own["readOnlyRootFilesystem"])
                self.assertIs(own["allowPrivilegeEscalation"], False)
                self.assertNotIn("privileged", own)
                self.assertEqual(own["capabilities"]["drop"], ["ALL"])
                allowed = ["IPC_LOCK"] if overlay.name == "rdma" and o["kind"] == "StatefulSet" else []
                self.assertEqual(own["capabilities"].get("add", []), allowed)
        level = overlay.get("Namespace", "oscarkv")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        self.assertEqual(level, "privileged" if overlay.name == "rdma" else "restricted")
        for o in overlay.of("Role"):
            for rule in o["rules"]:
                self.assertNotIn("*", rule["verbs"] + rule["resources"] + rule["apiGroups"])
                self.assertNotIn("secrets", rule["resources"])
        self.assertFalse(overlay.of("ClusterRole", "ClusterRoleBinding"))

    def allowed(self, overlay, source, target, port, protocol="TCP"):
        """Whether the policies let a pod (labels, namespace labels) of `source` open a connection to `target`."""
        def side(direction, own, other, other_namespace):
            policies = [o["spec"] for o in overlay.of("NetworkPolicy") if direction.title() in o["spec"]["policyTypes"] and
                        matches(o["spec"]["podSelector"].get("matchLabels", {}), own)]
            rules = [r for p in policies for r in p.get(direction, [])]

            def admits(peer):
                if "namespaceSelector" in peer:
                    if not matches(peer["namespaceSelector"].get("matchLabels", {}), other_namespace):
                        return False
                elif other_namespace != OWN:
                    return False
                return "podSelector" not in peer or matches(peer["podSelector"].get("matchLabels", {}), other)
            key = "from" if direction == "ingress" else "to"
            return not policies or any(
                any(admits(p) for p in r[key]) and
                any(p["protocol"] == protocol and p["port"] <= port <= p.get("endPort", p["port"]) for p in r["ports"]) for r in rules)
        (a, space_a), (b, space_b) = source, target
        return (space_a != OWN or side("egress", a, b, space_b)) and (space_b != OWN or side("ingress", b, a, space_a))

    def test_network_policies(self):
        overlay = self.overlay
        pod = {r: (o["spec"]["template"]["metadata"]["labels"], OWN) for r, o, _ in overlay.roles()}
        dns = ({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"})
        prometheus = ({}, {"kubernetes.io/metadata.name": "monitoring"})
        client = ({"oscarkv.io/client": "true"}, {"kubernetes.io/metadata.name": "apps"})
        stranger = ({}, {"kubernetes.io/metadata.name": "apps"})
        low, high = self.ucx_ports(overlay)
        needed = [(pod["gateway"], pod[r], PORTS[r]) for r in ("kvstore", "prefill", "attention")]
        needed += [(pod[r], pod["kvstore"], PORTS["kvstore"]) for r in ("prefill", "attention")]
        for r in ("prefill", "attention"):
            needed += [(pod[r], pod["kvstore"], low), (pod[r], pod["kvstore"], high), (pod["kvstore"], pod[r], low)]
        needed += [(prometheus, pod[r], METRICS_PORT) for r in ROLES] + [(client, pod["gateway"], PORTS["gateway"]),
                                                                                (client, pod["gateway"], HTTP_PORT)]
        for source, target, port in needed:
            self.assertTrue(self.allowed(overlay, source, target, port), (source, target, port))
        for r in ROLES:
            self.assertTrue(self.allowed(overlay, pod[r], dns, 53, "UDP"))
        denied = [(stranger, pod[r], PORTS[r]) for r in ROLES] + [(client, pod[r], PORTS[r]) for r in ROLES if r != "gateway"]
        denied += [(pod["gateway"], pod["kvstore"], low), (pod["prefill"], pod["attention"], PORTS["attention"]),
                   (pod["kvstore"], pod["gateway"], PORTS["gateway"]), (pod["prefill"], pod["kvstore"], high + 1),
                   (prometheus, pod["gateway"], PORTS["gateway"]), (stranger, pod["gateway"], HTTP_PORT), (pod["kvstore"], stranger, 443)]
        for source, target, port in denied:
            self.assertFalse(self.allowed(overlay, source, target, port), (source, target, port))

    def ucx_ports(self, overlay):
        ranges = {e["value"] for _, _, c in overlay.roles() for e in c.get("env", []) if e["name"] == "UCX_TCP_PORT_RANGE"}
        self.assertEqual(len(ranges), 1, "all roles must agree")
        return [int(p) for p in ranges.pop().split("-")]

    def test_autoscalers_use_documented_gauges_that_the_adapter_serves(self):
        adapter = yaml.safe_load((ROOT / "deploy/prometheus/adapter-rules.yaml").read_text())
        patterns = [re.search(r'__name__=~"([^"]*)"', r["seriesQuery"])[1] for r in adapter["rules"]["custom"]]
        known, options_by_role = metrics(), options()
        overlay = self.overlay
        for o in overlay.of("HorizontalPodAutoscaler"):
            for metric in o["spec"]["metrics"]:
                name = metric["pods"]["metric"]["name"]
                self.assertEqual(known[name][0], "gauge")
                self.assertTrue(any(re.fullmatch(p, name) for p in patterns), name)
        gateway = int(options_by_role["gateway"]["max-running"]["default"])
        batch = int(options_by_role["attention"]["max-batch"]["default"])
        targets = {m["pods"]["metric"]["name"]: float(m["pods"]["target"]["averageValue"]) for o in
                   Overlay("cpu").of("HorizontalPodAutoscaler") for m in o["spec"]["metrics"]}
        self.assertLess(targets["oscarkv_gateway_running_requests"], gateway, "would never be reached")
        self.assertLess(targets["oscarkv_attention_running_sequences"], batch, "would never be reached")


OWN = {"kubernetes.io/metadata.name": "oscarkv"}
for _name in OVERLAYS:
    globals()[_name.title()] = type(_name.title(), (EveryOverlay, unittest.TestCase), {})


class Secured(unittest.TestCase):
    def test_files_are_in_mounted_secrets_and_nobody_is_left_out(self):
        overlay = Overlay("secure")
        for role, o, container in overlay.roles():
            given = overlay.effective(role, container)
            volumes = {v["name"]: v for v in o["spec"]["template"]["spec"]["volumes"]}
            mounts = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"] if m.get("readOnly")}
            for option in ("tls-cert", "tls-key", "tls-ca", "auth-file"):
                folder, _, file = given[option].rpartition("/")
                self.assertIn(file, SECRETS[mounts[folder]["secret"]["secretName"]], f"{role} --{option}")
            self.assertEqual(given["tls-client-auth"], "optional" if role == "gateway" else "require")
            self.assertEqual({p["appProtocol"] for p in overlay.get("Service", f"oscarkv-{role}")["spec"]["ports"]}, {"https"})

    def test_prometheus_shows_a_token_and_trusts_the_ca(self):
        overlay = Overlay("secure")
        for role, o, container in overlay.roles():
            self.assertEqual(overlay.effective(role, container)["metrics-auth"], "operator")
        endpoint, = overlay.get("PodMonitor", "oscarkv")["spec"]["podMetricsEndpoints"]
        self.assertEqual((endpoint["scheme"], endpoint["authorization"]["type"]), ("https", "Bearer"))
        for ref in (endpoint["tlsConfig"]["ca"]["secret"], endpoint["authorization"]["credentials"]):
            self.assertIn(ref["key"], SECRETS[ref["name"]])
        self.assertEqual(endpoint["tlsConfig"]["serverName"], overlay.effective(role, container)["tls-peer-name"])

    def test_no_secret_is_in_the_repository(self):
        for name in OVERLAYS:
            self.assertEqual(Overlay(name).of("Secret"), [])


class Names(unittest.TestCase):
    def check(self, expression, where):
        known = metrics()
        found = metrics_of_expression(expression)
        self.assertTrue(found, f"{where}: no metric in {expression}")
        for name, labels in found:
            if name == "up":
                continue
            self.assertIn(name, known, where)
            self.assertLessEqual(labels, known[name][1] | TARGET_LABELS, f"{where}: {name}")

    def test_rules_use_documented_metrics_and_have_runbooks(self):
        rules = yaml.safe_load((ROOT / "deploy/prometheus/oscarkv.rules.yaml").read_text())
        runbooks = set(re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.M))
        alerts = [r for g in rules["groups"] for r in g["rules"]]
        self.assertEqual(len({r["alert"] for r in alerts}), len(alerts))
        for rule in alerts:
            self.check(rule["expr"], rule["alert"])
            self.assertIn(rule["labels"]["severity"], ("warning", "critical"))
            self.assertEqual(rule["annotations"]["runbook_url"], f"docs/runbooks.md#{rule['alert'].lower()}")
        self.assertEqual({r["alert"] for r in alerts}, runbooks, "docs/runbooks.md has one section per alert")

    def test_dashboards_use_documented_metrics(self):
        files = sorted((ROOT / "deploy/grafana").glob("*.json"))
        self.assertEqual(len(files), 4)
        for file in files:
            dashboard = json.loads(file.read_text())
            self.assertEqual(dashboard["uid"], file.stem)
            for panel in dashboard["panels"]:
                for target in panel["targets"]:
                    self.check(target["expr"], f"{file.name}: {panel['title']}")
            cells = [(x, y) for p in dashboard["panels"] for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
                     for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]
            self.assertEqual(len(cells), len(set(cells)), f"{file.name}: panels overlap")
            self.assertLess(max(x for x, _ in cells), 24)


class Kubectl(unittest.TestCase):
    def test_kubectl_renders_the_same(self):
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            self.skipTest("kubectl is not installed")
        version = subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True)
        built_in = json.loads(version.stdout or "{}").get("kustomizeVersion", "v0")
        if int(re.match(r"v(\d+)", built_in)[1]) < 5:
            self.skipTest(f"kubectl's kustomize is {built_in}: v5 is needed (Debian 12's is too old)")
        for name in OVERLAYS:
            with self.subTest(overlay=name):
                run = subprocess.run([kubectl, "kustomize", ROOT / "deploy/k8s/overlays" / name], capture_output=True, text=True)
                self.assertEqual(run.returncode, 0, run.stderr)
                text = re.sub(r"\b(oscarkv-(?:config|endpoints|dashboards))-[a-z0-9]{10}\b", r"\1", run.stdout)
                key = lambda o: (o["kind"], o["metadata"]["name"])
                self.assertEqual(sorted(yaml.safe_load_all(text), key=key), sorted(Overlay(name).objects, key=key))


if __name__ == "__main__":
    unittest.main(verbosity=2)
