"""Resolves the part of kustomize that deploy/k8s uses, so that the manifests are checked where no kubectl is.

What it does not know it refuses, instead of passing it by. Where kubectl is new enough the test compares both results.
Differences from kustomize: names of generated ConfigMaps carry no hash, the order of the objects is that of the files.
"""
import copy
import re
from pathlib import Path

import yaml

KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "images", "replicas", "configMapGenerator",
         "generatorOptions", "patches"}
CLUSTER_SCOPED = {"Namespace"}


def build(folder):
    """The objects of a kustomization, as dicts."""
    return _apply(Path(folder).resolve(), [])


def _apply(folder, objects):
    spec = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(spec) - KNOWN
    if unknown:
        raise ValueError(f"{folder}: this resolver does not know {sorted(unknown)}")
    for resource in spec.get("resources", []):
        path = folder / resource
        if path.is_dir():
            objects += _apply(path.resolve(), [])
        else:
            objects += [o for o in yaml.safe_load_all(path.read_text()) if o]
    for component in spec.get("components", []):
        objects = _apply((folder / component).resolve(), objects)
    for generator in spec.get("configMapGenerator", []):
        _generate(folder, generator, objects)
    for patch in spec.get("patches", []):
        _patch(folder, patch, objects)
    _transform(spec, objects)
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise ValueError(f"{folder}: more than one {sorted(twice)}")
    return objects


def _generate(folder, generator, objects):
    data = {}
    for entry in generator.get("files", []):
        key, _, path = entry.rpartition("=")
        data[key or Path(path).name] = (folder / path).read_text()
    for literal in generator.get("literals", []):
        key, _, value = literal.partition("=")
        data[key] = value
    behavior = generator.get("behavior", "create")
    if behavior == "merge":
        target, = [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == generator["name"]]
        target["data"].update(data)
    elif behavior == "create":
        metadata = {"name": generator["name"]}
        if generator.get("options", {}).get("labels"):
            metadata["labels"] = dict(generator["options"]["labels"])
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    else:
        raise ValueError(f"{folder}: behavior {behavior}")


def _selected(target, o):
    for key in target:
        if key not in ("kind", "name", "labelSelector"):
            raise ValueError(f"target {key}")
    if not re.fullmatch(target.get("kind", ".*"), o["kind"]) or not re.fullmatch(target.get("name", ".*"), o["metadata"]["name"]):
        return False
    labels = o["metadata"].get("labels", {})
    selector = target.get("labelSelector", "")
    if not selector:
        return True
    if match := re.fullmatch(r"(\S+) in \(([^)]*)\)", selector):
        return labels.get(match[1]) in [v.strip() for v in match[2].split(",")]
    key, _, value = selector.partition("=")
    return labels.get(key) == value


def _patch(folder, patch, objects):
    operations = yaml.safe_load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
    if not isinstance(operations, list):
        raise ValueError(f"{folder}: only JSON patches (a list of operations) are known")
    targets = [o for o in objects if _selected(patch["target"], o)]
    if not targets:
        raise ValueError(f"{folder}: no object for the patch of {patch['target']}")
    for target in targets:
        for operation in copy.deepcopy(operations):
            _operate(target, operation)


def _operate(target, operation):
    *path, last = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
    for part in path:
        target = target[int(part)] if isinstance(target, list) else target[part]
    op = operation["op"]
    if isinstance(target, list):
        if op != "add" or last != "-":
            raise ValueError(f"{op} {operation['path']}")
        target.append(operation["value"])
    elif op in ("add", "replace"):
        if op == "replace" and last not in target:
            raise ValueError(f"nothing to replace at {operation['path']}")
        target[last] = operation["value"]
    elif op == "remove":
        del target[last]
    else:
        raise ValueError(op)


def _transform(spec, objects):
    for o in objects:
        if "namespace" in spec and o["kind"] not in CLUSTER_SCOPED:
            o["metadata"]["namespace"] = spec["namespace"]
        for replica in spec.get("replicas", []):
            if o["kind"] in ("Deployment", "StatefulSet") and o["metadata"]["name"] == replica["name"]:
                o["spec"]["replicas"] = replica["count"]
        for image in spec.get("images", []):
            for container in containers(o):
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"


def pod_template(o):
    return o["spec"]["template"] if o["kind"] in ("Deployment", "StatefulSet", "Job") else None


def containers(o):
    template = pod_template(o)
    return [] if template is None else template["spec"].get("initContainers", []) + template["spec"]["containers"]
