"""Promises about what the chart renders."""

import json

from checks.chart import CHART, NAMESPACE, RELEASES, helm, label, matrix, name, read, render
from checks.schemas import faults, validator

# Kinds of the Prometheus operator, whose schemas no Kubernetes release holds.
FOREIGN = {"ServiceMonitor", "PodMonitor"}


def the_chart_lints():
    for values in matrix():
        done = helm("lint", "--strict", str(CHART), *(["--values", str(values)] if values else []))
        if done.returncode:
            yield f"{label(values)}: {done.stdout.strip()} {done.stderr.strip()}"


def every_manifest_is_valid_in_every_kubernetes_release():
    seen = set()
    for values in matrix():
        for version in RELEASES:
            for document in render(values, version):
                key = (version, json.dumps(document, sort_keys=True))
                if key in seen or document["kind"] in FOREIGN:
                    continue
                seen.add(key)
                schema = validator(version, document["kind"], document["apiVersion"])
                if schema is None:
                    yield f"{label(values)}: {name(document)}: Kubernetes {version} has no such kind"
                    continue
                for fault in faults(schema, document):
                    yield f"{label(values)}: Kubernetes {version}: {name(document)}: {fault}"


def every_pod_meets_pod_security_restricted():
    for values in matrix():
        for document in render(values):
            pod = document.get("spec", {})
            if document["kind"] in ("Deployment", "Job"):
                pod = pod["template"]["spec"]
            elif document["kind"] != "Pod":
                continue
            where = f"{label(values)}: {name(document)}"
            security = pod.get("securityContext", {})
            if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
                yield f"{where}: may run as root"
            if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield f"{where}: has no seccomp profile"
            for field in ("hostNetwork", "hostPID", "hostIPC"):
                if pod.get(field):
                    yield f"{where}: {field}"
            if "automountServiceAccountToken" not in pod:
                yield f"{where}: does not say whether it needs a token"
            for volume in pod.get("volumes", []):
                if "hostPath" in volume:
                    yield f"{where}: mounts a directory of the node"
            for container in pod["containers"] + pod.get("initContainers", []):
                security = container.get("securityContext", {})
                if security.get("allowPrivilegeEscalation") is not False:
                    yield f"{where}: {container['name']} may gain privileges"
                if security.get("capabilities") != {"drop": ["ALL"]}:
                    yield f"{where}: {container['name']} keeps capabilities"
                if security.get("readOnlyRootFilesystem") is not True:
                    yield f"{where}: {container['name']} may write to its root"
                if not container.get("resources", {}).get("limits", {}).get("memory"):
                    yield f"{where}: {container['name']} has no limit of memory"


def rights_name_verbs_and_resources_and_reach_no_secret():
    for values in matrix():
        for document in render(values):
            for rule in document.get("rules") or []:
                where = f"{label(values)}: {name(document)}"
                if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"]:
                    yield f"{where}: holds a wildcard"
                if {"secrets", "pods/exec", "pods/attach", "nodes/proxy"} & set(rule["resources"]):
                    yield f"{where}: reaches {', '.join(rule['resources'])}"
                if {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"]):
                    yield f"{where}: may {', '.join(rule['verbs'])}"


def the_namespaced_scope_has_no_cluster_role():
    for values in matrix():
        if not values or read(values).get("scope") != "Namespace":
            continue
        for document in render(values):
            if document["kind"].startswith("ClusterRole"):
                yield f"{label(values)}: {name(document)}"
            if document["metadata"].get("namespace", NAMESPACE) != NAMESPACE:
                yield f"{label(values)}: {name(document)} is in another namespace"


def crds_are_kept_unless_told_otherwise():
    crds = [document for document in render() if document["kind"] == "CustomResourceDefinition"]
    files = list((CHART / "files" / "crds").glob("*.yaml"))
    if len(crds) != len(files) or not files:
        yield f"{len(crds)} CRDs are rendered of {len(files)} files"
    for crd in crds:
        if crd["metadata"].get("annotations", {}).get("helm.sh/resource-policy") != "keep":
            yield f"{name(crd)}: goes with the release"
