#!/usr/bin/env python3
"""Writes deploy/prometheus/prometheus-rule.yaml, the Prometheus operator's form of oscarkv.rules.yaml. A test checks that it is current."""
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "deploy/prometheus"
HEAD = """# Written by scripts/prometheus_rule.py from oscarkv.rules.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: oscarkv
  labels:
    app.kubernetes.io/name: oscarkv
spec:
"""


def text():
    lines = (FOLDER / "oscarkv.rules.yaml").read_text().splitlines()
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines if not line.startswith("#"))


if __name__ == "__main__":
    (FOLDER / "prometheus-rule.yaml").write_text(text())
