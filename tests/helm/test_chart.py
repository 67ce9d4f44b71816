"""The rendered chart: lint, schemas of Kubernetes, defaults, switches and what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.placement import worker_plans
from cluster.spec import config
from tests.helm.chart import CI_VALUES, ROOT, VERSIONS, Chart, Manifest, RenderFailed, merged

ids = {"ids": lambda path: path.stem}


def test_values_schema_and_readme_are_generated() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_chart.py"), "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", CI_VALUES, **ids)
def test_lint(chart: Chart, path: Path) -> None:
    assert "0 chart(s) failed" in chart.lint(path)


@pytest.mark.parametrize("path", CI_VALUES, **ids)
def test_objects_fit_kubernetes_schemas(chart: Chart, path: Path) -> None:
    rendered = chart.render(path)
    for version in VERSIONS:
        rendered.fits(version)


@pytest.mark.parametrize("path", CI_VALUES, **ids)
def test_pods_match_the_spec(chart: Chart, path: Path) -> None:
    """The ConfigMap is the spec as it was given, and the groups have a pod for each worker that it plans."""
    rendered = chart.render(path)
    (text,) = (item["data"]["cluster.yaml"] for name, item in rendered.of("ConfigMap").items() if "dash" not in name)
    spec = config.parse(text)
    assert spec == config.parse(yaml.safe_dump(yaml.safe_load(path.read_text())["config"]))
    plans = worker_plans(spec)
    for role, pool in spec.pools.items():
        group = rendered.groups[role.value]
        assert group["replicas"] >= sum(plan.role is role for plan in plans) == pool.replicas
        offered = {key: float(value) for key, value in group["resources"].items()}
        for plan in plans:
            if plan.role is role:
                assert all(offered.get(name, 0) >= amount for name, amount in plan.total.items()), (plan, offered)


@pytest.mark.parametrize("path", CI_VALUES, **ids)
def test_ray_autoscaler_reads_the_groups(chart: Chart, path: Path) -> None:
    """Ray's own reader of the RayCluster sees what `ray start` is given."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    rendered = chart.render(path)
    cluster = copy.deepcopy(rendered.ray_clusters[0])
    cluster["metadata"]["namespace"] = "serving"
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    for name, group in rendered.groups.items():
        kind = types[name]
        assert kind["min_workers"] == group["minReplicas"] * group["numOfHosts"]
        assert kind["max_workers"] == group["maxReplicas"] * group["numOfHosts"]
        flags = " ".join(rendered.worker(name)["spec"]["containers"][0]["args"])
        resources = dict(kind["resources"])
        assert f"--num-cpus={resources.pop('CPU')} " in flags
        assert f"--memory={resources.pop('memory')} " in flags
        if gpus := resources.pop("GPU", 0):
            assert f"--num-gpus={gpus} " in flags
        stated = json.loads(flags.split("--resources='")[1].split("'")[0])
        assert stated == resources
        labels = dict(pair.split("=") for pair in flags.split("--labels='")[1].split("'")[0].split(","))
        assert labels == kind["labels"]
        for key, value in group["rayStartParams"].items():
            assert (f"--{key} " if value == "true" else f"--{key}={value} ") in flags


def test_defaults(chart: Chart, trial: Manifest) -> None:
    bare = {key: trial[key] for key in ("config", "model")}
    rendered = chart.render(bare)
    assert rendered.kinds == {
        "RayCluster", "Deployment", "Service", "ConfigMap", "ServiceAccount", "Role", "RoleBinding",
        "NetworkPolicy", "PodDisruptionBudget", "Pod",
    }  # fmt: skip
    assert len(rendered.of("Service")) == 3
    cluster = rendered.ray_clusters[0]["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert {name: group["replicas"] for name, group in rendered.groups.items()} == {"prefill": 1, "decode": 1}


def test_every_container_is_confined_and_limited(chart: Chart, h100: Manifest) -> None:
    for pod in chart.render(h100).pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert limits == requests
            assert {"cpu", "memory", "ephemeral-storage"} <= set(limits)


def test_three_probes_on_every_serving_container(chart: Chart, trial: Manifest) -> None:
    for pod in chart.render(trial).pods:
        (container,) = pod["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
            assert container[probe]["httpGet"]["path"] == path
            assert container[probe]["httpGet"]["port"] in ports


def test_workers_drain_before_they_end(chart: Chart, trial: Manifest) -> None:
    rendered = chart.render(merged(trial, {"drain.graceS": 75}))
    for group in rendered.groups:
        spec = rendered.worker(group)["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:3] == ["baton", "drain", "--local"]
        assert spec["terminationGracePeriodSeconds"] >= float(command[command.index("--timeout-s") + 1]) + 15


def test_network_policies(chart: Chart, h100: Manifest) -> None:
    policies = chart.render(h100).of("NetworkPolicy")
    clients = policies["trial-baton-gateway"]["spec"]["ingress"][0]
    assert [port["port"] for port in clients["ports"]] == ["grpc", "http"]
    peer, test_pod = clients["from"]
    assert peer == {"namespaceSelector": {"matchLabels": {"baton.io/client": "true"}}}
    labels = chart.render(h100).of("Pod")["trial-baton-test-generate"]["metadata"]["labels"]
    assert test_pod["podSelector"]["matchLabels"].items() <= labels.items()
    inside = policies["trial-baton-r1"]["spec"]
    assert inside["podSelector"]["matchExpressions"][0]["values"] == ["head", "worker"]
    everywhere = [rule for rule in inside["ingress"] if "ports" not in rule]
    assert [rule["from"][0]["podSelector"]["matchLabels"]["baton.io/cluster"] for rule in everywhere] == [
        "trial-baton-r1"
    ]
    own_namespace = merged(h100, {"network.clients": {"anyNamespace": False}})
    rule = chart.render(own_namespace).of("NetworkPolicy")["trial-baton-gateway"]["spec"]["ingress"][0]
    assert {"podSelector": {}} in rule["from"]


def test_a_gateway_is_not_let_into_another_revision(chart: Chart, trial: Manifest) -> None:
    """An upgrade: two Ray clusters, each closed to the other, and the gateways at the new one."""
    rendered = chart.render(
        merged(
            trial,
            {
                "revision": "r2",
                "image.tag": "2",
                "previous": {"revision": "r1", "tag": "1"},
                "network": {"enabled": True},
            },
        )
    )
    old, new = (item["metadata"]["name"] for item in reversed(rendered.ray_clusters))
    assert (old, new) == ("trial-baton-r1", "trial-baton-r2")
    images = {
        item["metadata"]["name"]: {
            group["template"]["spec"]["containers"][0]["image"]
            for group in [item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]]
        }
        for item in rendered.ray_clusters
    }
    assert images == {old: {"baton:1"}, new: {"baton:2"}}
    for name in (old, new):
        policy = rendered.of("NetworkPolicy")[name]["spec"]
        assert policy["podSelector"]["matchLabels"]["baton.io/cluster"] == name
        peers = [peer for rule in policy["ingress"] for peer in rule["from"] if "podSelector" in peer]
        assert {peer["podSelector"]["matchLabels"]["baton.io/cluster"] for peer in peers} == {name}
    assert f"{new}-head-svc:50100" in rendered.gateway["spec"]["containers"][0]["args"][0]
    assert set(rendered.of("Role")["trial-baton-head"]["rules"][-1]["resourceNames"]) == {
        f"{old}-controller",
        f"{new}-controller",
    }


def test_rights_are_the_least(chart: Chart, h100: Manifest) -> None:
    rendered = chart.render(h100)
    rules = rendered.of("Role")["trial-baton-head"]["rules"]
    assert all("*" not in rule["verbs"] + rule["resources"] for rule in rules)
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch", "patch", "create", "update"}
    tokens = {pod["metadata"]["name"] for pod in rendered.pods if pod["spec"]["automountServiceAccountToken"]}
    assert tokens == {"trial-baton-r1-head"}
    without = chart.render(merged(h100, {"autoscaling.enabled": False, "topology": {}})).of("Role")["trial-baton-head"][
        "rules"
    ]
    assert {resource for rule in without for resource in rule["resources"]} == {"leases"}


SWITCHES: list[tuple[dict[str, Any], str, bool]] = [
    ({"network.enabled": True}, "NetworkPolicy", True),
    ({"network.enabled": False}, "NetworkPolicy", False),
    ({"disruption.enabled": True}, "PodDisruptionBudget", True),
    ({"disruption.enabled": False}, "PodDisruptionBudget", False),
    ({"serviceAccount": {"create": True}}, "ServiceAccount", True),
    ({"serviceAccount": {"create": False, "name": "mine"}}, "ServiceAccount", False),
    ({"monitoring.serviceMonitor": True}, "ServiceMonitor", True),
    ({"monitoring.serviceMonitor": True}, "PodMonitor", True),
    ({"monitoring.serviceMonitor": False}, "PodMonitor", False),
    ({"monitoring.alerts": {"enabled": True}}, "PrometheusRule", True),
    ({"monitoring.alerts": {"enabled": False}}, "PrometheusRule", False),
]


@pytest.mark.parametrize(("changes", "kind", "there"), SWITCHES)
def test_switches(chart: Chart, trial: Manifest, changes: dict[str, Any], kind: str, there: bool) -> None:
    assert (kind in chart.render(merged(trial, changes)).kinds) is there


def test_dashboard_switch(chart: Chart, trial: Manifest) -> None:
    assert "trial-baton-dashboard" not in chart.render(trial).of("ConfigMap")
    found = chart.render(merged(trial, {"monitoring.dashboard": True})).of("ConfigMap")["trial-baton-dashboard"]
    assert json.loads(found["data"]["baton.json"])["uid"] == "baton"


def test_rdma_switch(chart: Chart, h100: Manifest) -> None:
    spec = chart.render(h100).worker("decode")["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["rdma/hca_shared_devices_a"] == 1
    assert container["resources"]["limits"]["hugepages-2Mi"] == "2048Mi"
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert "baton.io/rdma=true" in container["args"][0]
    plain = chart.render(merged(h100, {"decodeWorkers.rdma": {"resource": ""}})).worker("decode")["spec"]
    assert "add" not in plain["containers"][0]["securityContext"]["capabilities"]
    assert "rdma" not in plain["containers"][0]["args"][0]


def test_topology_switches(chart: Chart, h100: Manifest) -> None:
    spec = chart.render(h100).worker("prefill")["spec"]
    (term,) = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"]["baton.io/cluster"] == "trial-baton-r1"
    assert "baton.io/role" not in term["labelSelector"]["matchLabels"]  # prefill and decode together
    assert spec["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    soft = merged(h100, {"topology": {"togetherKey": "x", "togetherHard": False, "spreadKey": ""}})
    spec = chart.render(soft).worker("prefill")["spec"]
    assert list(spec["affinity"]["podAffinity"]) == ["preferredDuringSchedulingIgnoredDuringExecution"]
    assert "topologySpreadConstraints" not in spec
    assert "affinity" not in chart.render(merged(h100, {"topology": {}})).worker("prefill")["spec"]


def test_standby_pods_and_bounds(chart: Chart, h100: Manifest) -> None:
    group = chart.render(h100).groups["decode"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (
        5,
        5,
        9,
    )  # one on standby; max 8 of config


def test_workers_on_standby_have_pods_of_their_own(chart: Chart, h100: Manifest) -> None:
    changes = {"config.pools.decode.standby_replicas": 2, "decodeWorkers.standbyReplicas": 0}
    group = chart.render(merged(h100, changes)).groups["decode"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (6, 6, 10)
    scaled = {"config.autoscaling": {"enabled": True}, "config.pools.decode.min_replicas": 1}
    group = chart.render(merged(h100, {**changes, **scaled})).groups["decode"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (3, 6, 10)


def test_extra_groups_share_a_pool(chart: Chart, h100: Manifest) -> None:
    spot = {
        **h100["decodeWorkers"],
        "name": "decode-spot",
        "role": "decode",
        "replicas": 1,
        "maxReplicas": 6,
        "nodeSelector": {"pool": "spot"},
    }
    rendered = chart.render(merged(h100, {"extraWorkerGroups": [spot]}))
    assert [rendered.groups[name]["replicas"] for name in ("decode", "decode-spot")] == [4, 2]  # standby in both
    assert rendered.groups["decode-spot"]["resources"]["decode"] == "1"
    assert rendered.worker("decode-spot")["spec"]["nodeSelector"] == {"pool": "spot"}


def test_a_worker_over_two_hosts(chart: Chart, h100: Manifest) -> None:
    changes: dict[str, Any] = {}
    for role in ("prefill", "decode"):
        changes |= {
            f"config.pools.{role}.accelerators_per_worker": 16,
            f"config.pools.{role}.tensor_parallel_size": 16,
            f"{role}Workers.gpusPerWorker": 16,
            f"{role}Workers.tensorParallelSize": 16,
            f"{role}Workers.standbyReplicas": 0,
        }
    rendered = chart.render(merged(h100, changes))
    assert rendered.groups["decode"]["numOfHosts"] == 2
    assert rendered.gpus == (2 + 4) * 16


@pytest.mark.parametrize(
    ("model", "volume"),
    [
        ({"kind": "pvc", "claim": "c"}, "persistentVolumeClaim"),
        ({"kind": "hostPath", "hostPath": "/m"}, "hostPath"),
        ({"kind": "image", "image": "weights:1"}, "image"),
        ({"kind": "emptyDir", "fetch": {"image": "bucket:1", "command": ["get"], "envFromSecret": "s"}}, "emptyDir"),
    ],
)
def test_model_volumes(chart: Chart, trial: Manifest, model: Manifest, volume: str) -> None:
    for pod in chart.render(merged(trial, {"model": model})).pods:
        found = {item["name"]: item for item in pod["spec"]["volumes"]}["model"]
        assert volume in found
        assert ("initContainers" in pod["spec"]) is (volume == "emptyDir")


def test_secrets_are_references(chart: Chart, h100: Manifest) -> None:
    rendered = chart.render(h100)
    assert "Secret" not in rendered.kinds
    named = {item["secret"]["secretName"] for item in rendered.gateway["spec"]["volumes"] if "secret" in item}
    assert named == {"baton-api-keys", "baton-tls", "baton-cluster"}
    for pod in (rendered.head, rendered.worker("decode")):
        named = {item["secret"]["secretName"] for item in pod["spec"]["volumes"] if "secret" in item}
        assert named == {"baton-cluster"}


def test_helm_test_makes_a_grpc_call(chart: Chart, trial: Manifest) -> None:
    rendered = chart.render(trial)
    (container,) = rendered.of("Pod")["trial-baton-test-generate"]["spec"]["containers"]
    assert container["command"] == ["baton", "generate"]
    name, port = container["args"][1].split(":")
    service, namespace, kind = name.split(".")
    assert (namespace, kind) == ("serving", "svc")
    assert rendered.of("Service")[service]["spec"]["ports"][0]["port"] == int(port)


def test_notes(chart: Chart, trial: Manifest, h100: Manifest) -> None:
    notes = chart.notes(trial)
    assert "helm -n serving test trial --logs" in notes
    assert "baton status --release trial -n serving" in notes
    assert "WARNING: network.enabled is false" in notes
    notes = chart.notes(h100)
    assert "decode: 4 workers of 2 GPUs (H100), up to 9 pods" in notes
    assert "WARNING" not in notes


def test_alerts_and_dashboard_name_real_metrics(chart: Chart, h100: Manifest) -> None:
    import re

    from cluster.spec.config import SloSettings
    from orchestrator.gateway.metrics import GatewayMetrics

    gateway = GatewayMetrics()
    gateway.of_model("m", SloSettings())
    known = {*gateway.names(), "vllm:nixl_num_kv_expired_reqs", "vllm:nixl_num_failed_transfers"}
    rendered = chart.render(h100)
    (rule,) = rendered.of("PrometheusRule").values()
    (board,) = (item for name, item in rendered.of("ConfigMap").items() if "dashboard" in name)
    text = json.dumps(rule["spec"]) + board["data"]["baton.json"]
    used = {
        re.sub(r"_(bucket|sum|count|total)$", "", name) for name in re.findall(r"(?:baton|vllm:nixl)_[a-z_]+", text)
    }
    assert used
    assert used <= known
    alerts = {item["alert"] for group in rule["spec"]["groups"] for item in group["rules"]}
    assert {"BatonKvExhausted", "BatonLeaseExpired", "BatonTransferFallbackToTcp", "BatonSloBurnTtftCritical"} <= alerts


def test_burn_rates_use_a_bucket_that_there_is(chart: Chart, h100: Manifest) -> None:
    import re

    from orchestrator.gateway.metrics import ModelMetrics

    h100["config"]["slo"] = {"ttft_p95_s": 3, "itl_p95_s": 0.045, "ttfat_p95_s": 7.5, "e2e_p95_s": 90}
    metrics = ModelMetrics(config.parse(yaml.safe_dump(h100["config"])).slo)
    buckets = {
        (sample.name, sample.labels["le"])
        for family in metrics.registry.collect()
        for sample in family.samples
        if "le" in sample.labels
    }
    (rule,) = chart.render(h100).of("PrometheusRule").values()
    used = set(re.findall(r'(baton_\w+_bucket)\{[^}]*le="([^"]+)"', "".join(map(str, _expressions(rule)))))
    assert len(used) == 4
    assert used <= buckets


def _expressions(rule: Manifest) -> list[str]:
    return [item["expr"] for group in rule["spec"]["groups"] for item in group["rules"]]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("unknown key", {"gateways": {}}, "additional properties 'gateways' not allowed"),
    ("unknown key inside", {"gateway.replica": 2}, "additional properties 'replica' not allowed"),
    ("unknown key of the spec", {"config.model.colour": "red"}, "additional properties 'colour' not allowed"),
    ("wrong type", {"gateway.replicas": "two"}, "got string, want integer"),
    ("wrong type in the spec", {"config.pools.decode.replicas": "two"}, "got string, want integer"),
    ("no spec", {"config": None}, "config"),
    ("out of range", {"gateway.replicas": 0}, "minimum: got 0, want 1"),
    ("drain longer than grace", {"drain.graceS": 60}, "the pod would be killed with requests in it"),
    ("zero GPUs with a CUDA image", {"image.device": "cuda"}, "a CUDA image with zero GPUs cannot run an engine"),
    (
        "GPUs with a CPU image",
        {"prefillWorkers.gpusPerWorker": 1, "config.pools.prefill.accelerators_per_worker": 1},
        "set image.device to cuda",
    ),
    (
        "two groups of one name",
        {"extraWorkerGroups": [{"name": "decode", "role": "decode"}]},
        "two groups have this name",
    ),
    (
        "replicas unlike the spec",
        {"decodeWorkers.replicas": 3},
        "replicas and standby_replicas are 1",
    ),
    ("GPUs unlike the spec", {"decodeWorkers.gpusPerWorker": 1}, "accelerators_per_worker is 0"),
    ("a pod too small for its worker", {"decodeWorkers.cpus": 0.5}, "cpus_per_worker is 1"),
    ("a foreign resource", {"config.pools.decode.node_resource": "fast"}, "node_resource"),
    ("a free port", {"config.gateway": {"grpc_port": 0}}, "which no Service can name"),
    ("a claim without a name", {"model": {"kind": "pvc"}}, "name the PersistentVolumeClaim"),
    ("an empty model volume", {"model": {"kind": "emptyDir"}}, "fetch.image"),
    (
        "tenants' limits held by another number of gateways",
        {"gateway.replicas": 4, "config.gateway": {"replicas": 2}, "config.tenants": {"acme": {"max_in_flight": 8}}},
        "tenants would have 2 times their limits",
    ),
    ("one revision twice", {"previous": {"revision": "r1"}}, "equals revision"),
    ("an account without a name", {"serviceAccount": {"create": False}}, "serviceAccount.name"),
]


@pytest.mark.parametrize(("changes", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(chart: Chart, trial: Manifest, changes: dict[str, Any], says: str) -> None:
    values = merged(trial, changes)
    if "model" in changes:
        values["model"] = changes["model"]
    with pytest.raises(RenderFailed, match=says.replace("(", r"\(")):
        chart.render(values)
