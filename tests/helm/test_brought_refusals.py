"""Values that cannot work are refused before anything is installed, each with one sentence that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart import Chart, Manifest, merged

CONTAINER = {"name": "log", "image": "log:1"}
EMPTY: dict[str, Any] = {"name": "x", "emptyDir": {}}

BY_TEMPLATES: list[tuple[dict[str, Any], str]] = [
    # Null takes a default away.
    ({"gateway.replicas": None}, "gateway.replicas is null; leave the key out to have its default, 2"),
    ({"head.memoryGib": None}, "head.memoryGib is null"),
    ({"network": None}, "network is null; leave the key out to have its defaults"),
    ({"decodeWorkers": None}, "decodeWorkers is null; leave the key out to have its defaults"),
    ({"image.repository": None}, "image.repository is null"),
    ({"helmTest.keyField": None}, "helmTest.keyField is null"),
    # Names of the chart's own.
    (
        {"podLabels": {"baton.io/role": "x"}},
        "podLabels of the top level: baton.io/role is set by the chart or by KubeRay",
    ),
    ({"head.podLabels": {"ray.io/cluster": "x"}}, "podLabels of head: ray.io/cluster"),
    ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "commonLabels: app.kubernetes.io/name"),
    ({"gateway.podAnnotations": {"checksum/spec": "x"}}, "podAnnotations of gateway: checksum/spec"),
    ({"env": {"BATON_SPEC": "x"}}, "env of .*: BATON_SPEC is set by the chart"),
    ({"decodeWorkers.env": [{"name": "POD_IP", "value": "x"}]}, "env of decodeWorkers: POD_IP is set by the chart"),
    ({"head.env": {"RAY_ADDRESS": "x"}}, "RAY_ADDRESS is set by KubeRay"),
    ({"decodeWorkers.env": {"UCX_TLS": "rc"}}, "UCX_TLS follows from config.transfer.transports"),
    ({"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}, "extraVolumes of .*: tmp is a volume of the chart"),
    ({"gateway.extraVolumeMounts": [{"name": "tmp", "mountPath": "/models/"}]}, "the chart mounts /models/ itself"),
    ({"sidecars": [{**CONTAINER, "name": "gateway"}]}, "gateway is the name of the chart's container"),
    ({"prefillWorkers.initContainers": [{**CONTAINER, "name": "wait-gcs-ready"}]}, "KubeRay's container"),
    ({"initContainers": [CONTAINER], "sidecars": [CONTAINER]}, "log is the name of another of initContainers"),
    ({"model.mountPath": "/tmp"}, "model.mountPath is /tmp, which the chart mounts itself"),
    # Twice the same.
    (
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "env of the top level: two entries .* name A",
    ),
    ({"gateway.extraVolumes": [EMPTY, EMPTY]}, "extraVolumes of gateway: two entries have the name x"),
    ({"gateway.sidecars": [CONTAINER, CONTAINER]}, "sidecars of gateway: two entries have the name log"),
    (
        {"extraVolumeMounts": [{"name": "tmp", "mountPath": "/a"}, {"name": "tmp", "mountPath": "/a"}]},
        "two entries have the mountPath /a",
    ),
    ({"gateway.ipFamilies": ["IPv4", "IPv4"]}, "names a family twice"),
    ({"ingress": {"enabled": True, "hosts": ["a.org", {"host": "a.org"}]}}, "ingress.hosts names a.org twice"),
    # Halves.
    ({"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}, "has value and valueFrom"),
    ({"env": {"A": {"valueFrom": {}}}}, "env.A.valueFrom: name one source"),
    ({"gateway.extraVolumes": [{"name": "x"}]}, "extraVolumes of gateway: x needs one source"),
    ({"extraVolumeMounts": [{"name": "nowhere", "mountPath": "/a"}]}, "no volume is called nowhere"),
    ({"sidecars": [{**CONTAINER, "volumeMounts": [{"name": "no", "mountPath": "/a"}]}]}, "no volume is called no;"),
    ({"head.sidecars": [{"name": "log"}]}, "sidecars of head: log has no image"),
    ({"head.sidecars": [{"name": "Log", "image": "x"}]}, 'sidecars of head: "Log" is no name of a container'),
    ({"head.sidecars": [{**CONTAINER, "restartPolicy": "Always"}]}, "put it into initContainers"),
    ({"lifecycle": {"postStart": {"exec": {}, "sleep": {"seconds": 1}}}}, "lifecycle.postStart .* name one of"),
    ({"ingress": {"enabled": True}}, "ingress.hosts is empty"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty"),
    ({"grpcRoute": {"enabled": True}}, "grpcRoute.parentRefs is empty"),
    ({"dnsPolicy": "None"}, "name servers in dnsConfig.nameservers"),
    ({"extraObjects": ["a: b"]}, r"extraObjects\[0\] is no object of Kubernetes"),
    ({"decodeWorkers.resourceClaims": [{"name": "x"}]}, "x needs one of spec"),
    ({"decodeWorkers.resourceClaims": [{"name": "x", "spec": {"devices": {}}}]}, "spec.devices.requests is empty"),
    (
        {"decodeWorkers.resourceClaims": [{"name": "x", "spec": {"devices": {"requests": [{"name": "r"}]}}}]},
        "a request has exactly or firstAvailable",
    ),
    # What contradicts itself.
    ({"tolerations": [{"key": "", "value": "x"}]}, "an entry without key tolerates every taint"),
    ({"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}, "operator Exists takes no value"),
    ({"tolerations": [{"key": "a", "tolerationSeconds": 3}]}, "tolerationSeconds is of the effect NoExecute"),
    ({"podSecurityContext": {"runAsUser": 0}, "securityContext": {"runAsUser": None}}, "runAsUser 0 is root"),
    ({"head.securityContext": {"runAsUser": 0}}, "head: runAsUser 0 is root"),
    ({"securityContext": {"privileged": True}}, "privileged needs allowPrivilegeEscalation"),
    ({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}, "SYS_ADMIN needs allowPrivilegeEscalation"),
    ({"decodeWorkers.lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}, "a worker's own hook drains it"),
    ({"automountServiceAccountToken": False}, "automountServiceAccountToken is false for the head"),
    ({"gateway.hostNetwork": True, "network.enabled": True}, "hostNetwork of gateway: NetworkPolicies"),
    ({"gateway.loadBalancerSourceRanges": ["10.0.0.0/8"]}, "loadBalancerSourceRanges is of load balancers"),
    ({"gateway.allocateLoadBalancerNodePorts": False}, "allocateLoadBalancerNodePorts is of load balancers"),
    ({"gateway.externalTrafficPolicy": "Local"}, "gateway.serviceType is ClusterIP; choose NodePort or LoadBalancer"),
    ({"gateway.nodePorts": {"http": 30000}}, "gateway.nodePorts.http is given, but gateway.serviceType is ClusterIP"),
    (
        {"gateway.serviceType": "NodePort", "gateway.nodePorts": {"http": 30000, "grpc": 30000}},
        "30000 is given to gRPC and HTTP",
    ),
    ({"gateway.ipFamilies": ["IPv4", "IPv6"]}, "set gateway.ipFamilyPolicy"),
    ({"gateway.strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}, "Recreate has no rollingUpdate"),
    ({"config.gateway": {"http_port": 50051}}, "config.gateway.http_port is 50051, which is the port of grpc_port"),
    ({"config.gateway": {"metrics_port": 8081}}, "config.gateway.metrics_port is 8081, which is the port of probes"),
    (
        {"prefillWorkers.terminationGracePeriodSeconds": 60},
        "prefill: terminationGracePeriodSeconds is 60 s, but a drain may take",
    ),
    (
        {"decodeWorkers.priorityClass": "a", "decodeWorkers.priorityClassName": "b"},
        "priorityClass and priorityClassName name two classes",
    ),
    (
        {"image.repository": "a.org/baton", "global": {"imageRegistry": "b.org"}},
        "leave the registry out of one of them",
    ),
    ({"serviceAccount": {"name": "a", "workerName": "a"}}, "a is the name of two accounts"),
    (
        {
            "topologySpreadConstraints": [
                {"maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"} for skew in (1, 2)
            ]
        },
        "two entries have topologyKey zone",
    ),
]

BY_SCHEMA: list[tuple[dict[str, Any], str]] = [
    # A null replicas, and what is like it.
    ({"config.pools.decode.replicas": None}, "/config/pools/decode/replicas': got null, want integer"),
    ({"config.pools.decode": {"cpus_per_worker": 1}}, "/config/pools/decode': missing property 'replicas'"),
    ({"config.pools": None}, "/config/pools': got null, want object"),
    ({"config.pools.prefill.engine": None}, "/config/pools/prefill/engine': got null, want object"),
    ({"decodeWorkers.memoryGib": None}, "/decodeWorkers/memoryGib': got null, want number"),
    ({"extraWorkerGroups": [{"name": "x", "role": None}]}, "/extraWorkerGroups/0/role'"),
    # YAML reads some texts as something else.
    ({"podAnnotations": {"a/scrape": True}}, "/podAnnotations/a~1scrape': got boolean, want string"),
    ({"podLabels": {"version": 1.1}}, "/podLabels/version': got number, want string"),
    ({"env": {"A": 1}}, "/env/A': got number, want string"),
    ({"env": [{"name": "A", "value": True}]}, "/env/0/value': got boolean, want string"),
    ({"gateway.nodePorts": {"grpc": "30051"}}, "/gateway/nodePorts/grpc': got string"),
    ({"sidecars": [{**CONTAINER, "ports": [{"containerPort": "80"}]}]}, "containerPort': got string, want integer"),
    # Forms.
    ({"env": "A=1"}, "/env': got string, want object"),
    ({"imagePullSecrets": "x"}, "/imagePullSecrets': got string, want array"),
    ({"imagePullSecrets": [{"nam": "x", "name": "y"}]}, "additional properties 'nam' not allowed"),
    ({"tolerations": {"key": "x"}}, "/tolerations': got object, want array"),
    ({"affinity": []}, "/affinity': got array, want object"),
    # Misspelt, or of no version that is supported.
    ({"tolerations": [{"key": "x", "operatr": "Exists"}]}, "additional properties 'operatr' not allowed"),
    ({"gateway.affinity": {"nodeAfinity": {}}}, "/gateway/affinity': additional properties 'nodeAfinity'"),
    ({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {}}}]}, "additional properties 'fileKeyRef' not allowed"),
    ({"extraVolumes": [{"name": "x", "secrets": {}}]}, "/extraVolumes/0': additional properties 'secrets'"),
    ({"startupProbe": {"httpGet": {"port": 1}}}, "/startupProbe': additional properties 'httpGet' not allowed"),
    ({"hostPID": True}, "additional properties 'hostPID' not allowed"),
    ({"decodeWorkers.resources": {}}, "/decodeWorkers': additional properties 'resources' not allowed"),
    # Names and addresses.
    ({"podLabels": {"a": "two words"}}, "/podLabels/a': 'two words' does not match pattern"),
    ({"gateway.loadBalancerSourceRanges": ["10.0.0.1"]}, "/gateway/loadBalancerSourceRanges/0'"),
    ({"runtimeClassName": "My Class"}, "/runtimeClassName'"),
    ({"fullnameOverride": "My_Name"}, "/fullnameOverride'"),
    ({"decodeWorkers.gpuResource": "gpu"}, "/decodeWorkers/gpuResource'"),
    ({"model.subPath": "/abs"}, "/model/subPath'"),
    ({"ingress": {"hosts": ["https://a.org"]}}, "/ingress/hosts/0'"),
    ({"httpRoute": {"rules": [{"timeouts": {"request": "1 s"}}]}}, "/httpRoute/rules/0/timeouts/request'"),
    ({"httpRoute": {"parentRefs": [{"namespace": "x"}]}}, "missing property 'name'"),
]


def name(row: Any) -> str:
    return " ".join(row) if isinstance(row, dict) else ""


@pytest.mark.parametrize(("changes", "says"), [*BY_TEMPLATES, *BY_SCHEMA], ids=name)
def test_one_sentence(chart: Chart, trial: Manifest, changes: dict[str, Any], says: str) -> None:
    import re

    said = chart.refusal(merged(trial, changes))
    assert re.search(says, said), said


def test_null_replicas_without_the_schema(chart: Chart, trial: Manifest) -> None:
    """Argo CD and others can leave the schema out."""
    said = chart.refusal(merged(trial, {"config.pools.decode.replicas": None}), "--skip-schema-validation")
    assert said == "config.pools.decode.replicas is null; give the number of workers, since it has no default"


@pytest.mark.parametrize(
    ("changes", "version", "says"),
    [
        ({"model": {"kind": "image", "image": "weights:1"}}, "1.32", "model.kind image needs Kubernetes 1.33"),
        (
            {
                "decodeWorkers.resourceClaims": [
                    {"name": "x", "spec": {"devices": {"requests": [{"name": "r", "firstAvailable": [{}]}]}}}
                ]
            },
            "1.32",
            "firstAvailable needs Kubernetes 1.33",
        ),
        (
            {
                "decodeWorkers.resourceClaims": [
                    {"name": "x", "spec": {"devices": {"requests": [{"name": "r", "exactly": {}}]}}}
                ]
            },
            "1.30",
            "resourceClaims need Kubernetes 1.31",
        ),
    ],
)
def test_what_an_older_kubernetes_lacks(
    chart: Chart, trial: Manifest, changes: dict[str, Any], version: str, says: str
) -> None:
    assert says in chart.refusal(merged(trial, changes), "--kube-version", f"{version}.0")


def test_groups_without_gpus_from_anywhere(chart: Chart, h100: Manifest) -> None:
    said = chart.refusal(merged(h100, {"decodeWorkers.gpuResource": ""}))
    assert said == "worker group decode: gpuResource is empty and resourceClaims, too; one of them brings the GPUs"


def test_a_release_whose_name_makes_no_service(chart: Chart, trial: Manifest) -> None:
    said = chart.refusal(trial, release="my.release")
    assert said.startswith("release my.release: KubeRay wants names that begin with a letter and have no dots")
