"""Values that people bring from other charts, each in the pods or objects where it belongs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart import Chart, Manifest, Rendered, merged

OLDEST, NEWEST = "1.31", "1.37"


@pytest.fixture
def brought(chart: Chart, trial: Manifest) -> Any:
    """Renders the CPU trial with changes; what comes out is valid for the oldest and the newest Kubernetes."""

    def render(changes: dict[str, Any], version: str = NEWEST) -> Rendered:
        rendered = chart.render(merged(trial, changes), "--kube-version", f"{version}.0")
        for each in {OLDEST, version}:
            rendered.fits(each)
        return rendered

    return render


def main(pod: Manifest) -> Manifest:
    container: Manifest = pod["spec"]["containers"][0]
    return container


def env(pod: Manifest) -> dict[str, Any]:
    """Environment by name; each name once."""
    entries = main(pod)["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry.get("valueFrom", entry.get("value")) for entry in entries}


def kinds_of(rendered: Rendered) -> dict[str, Manifest]:
    return {
        "head": rendered.head,
        "gateway": rendered.gateway,
        "prefillWorkers": rendered.worker("prefill"),
        "decodeWorkers": rendered.worker("decode"),
    }


SECTIONS = ("head", "gateway", "prefillWorkers", "decodeWorkers")


@pytest.mark.parametrize("section", SECTIONS)
def test_pod_annotations_and_labels(brought: Any, section: str) -> None:
    changes = {
        "podAnnotations": {"example.org/scrape": "true", "both": "all"},
        "podLabels": {"team": "ml", "both": "all"},
        f"{section}.podAnnotations": {"both": "own"},
        f"{section}.podLabels": {"both": "own"},
    }
    rendered = brought(changes)
    for name, pod in kinds_of(rendered).items():
        expected = "own" if name == section else "all"
        assert pod["metadata"]["annotations"].items() >= {"example.org/scrape": "true", "both": expected}.items()
        assert pod["metadata"]["labels"].items() >= {"team": "ml", "both": expected}.items()
    test_pod = rendered.of("Pod")["trial-baton-test-generate"]["metadata"]
    assert test_pod["labels"]["team"] == "ml"
    assert test_pod["annotations"]["helm.sh/hook"] == "test"


def test_annotations_are_no_templates(brought: Any) -> None:
    vault = '{{- with secret "kv/x" -}}{{ .Data.token }}{{- end -}}'
    rendered = brought({"podAnnotations": {"vault.hashicorp.com/agent-inject-template-x": vault}})
    assert vault in rendered.gateway["metadata"]["annotations"].values()


@pytest.mark.parametrize("section", SECTIONS)
def test_affinity(brought: Any, section: str) -> None:
    term = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}
    node = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    for name, pod in kinds_of(brought({f"{section}.affinity": node})).items():
        assert pod["spec"].get("affinity") == (node if name == section else None)


def test_affinity_is_added_to_the_domains(brought: Any) -> None:
    own = {"topologyKey": "x", "labelSelector": {"matchLabels": {"a": "b"}}}
    term = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [own]}, "podAntiAffinity": {}}
    rendered = brought({"prefillWorkers.affinity": term, "topology": {"togetherKey": "rack"}})
    (mine, together) = rendered.worker("prefill")["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert mine == own
    assert together["topologyKey"] == "rack"


def test_topology_spread(brought: Any) -> None:
    zone = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    host = {"maxSkew": 3, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    rendered = brought({"topologySpreadConstraints": [zone], "gateway.topologySpreadConstraints": [host]})
    chart_own, given = rendered.worker("decode")["spec"]["topologySpreadConstraints"]
    assert chart_own["topologyKey"] == "kubernetes.io/hostname"
    assert given.items() >= zone.items()
    assert given["labelSelector"] == chart_own["labelSelector"]
    assert [item["maxSkew"] for item in rendered.gateway["spec"]["topologySpreadConstraints"]] == [1, 3]


def test_tolerations_and_node_selector(brought: Any) -> None:
    everything = {"operator": "Exists"}
    changes = {"tolerations": [everything], "head.nodeSelector": {"pool": "cpu"}, "nodeSelector": {"os": "linux"}}
    rendered = brought({**changes, "decodeWorkers.tolerations": [{"key": "gpu", "operator": "Exists"}]})
    assert rendered.gateway["spec"]["tolerations"] == [everything]
    assert rendered.worker("decode")["spec"]["tolerations"] == [everything, {"key": "gpu", "operator": "Exists"}]
    assert rendered.head["spec"]["nodeSelector"] == {"pool": "cpu", "os": "linux"}
    assert rendered.worker("prefill")["spec"]["nodeSelector"] == {"os": "linux"}


def test_volumes_and_mounts(brought: Any) -> None:
    changes = {
        "extraVolumes": [{"name": "ca", "secret": {"secretName": "roots"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/extra", "readOnly": True}],
        "decodeWorkers.extraVolumes": [{"name": "ca", "configMap": {"name": "own"}}, {"name": "x", "emptyDir": {}}],
    }
    for name, pod in kinds_of(brought(changes)).items():
        volumes = {item["name"]: item for item in pod["spec"]["volumes"]}
        assert ("configMap" in volumes["ca"]) is (name == "decodeWorkers")
        assert ("x" in volumes) is (name == "decodeWorkers")
        assert {"name": "ca", "mountPath": "/etc/ssl/extra", "readOnly": True} in main(pod)["volumeMounts"]


def test_init_containers_and_sidecars(brought: Any) -> None:
    fetch = {"kind": "emptyDir", "fetch": {"image": "bucket:1", "command": ["get"]}}
    proxy = {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}
    rendered = brought(
        {
            "model": fetch,
            "initContainers": [proxy],
            "sidecars": [{"name": "log", "image": "log:1", "volumeMounts": [{"name": "tmp", "mountPath": "/t"}]}],
        }
    )
    for pod in kinds_of(rendered).values():
        assert [item["name"] for item in pod["spec"]["initContainers"]] == ["proxy", "fetch-model"]
        assert [item["name"] for item in pod["spec"]["containers"]][1:] == ["log"]
    # The pod of `helm test` must end by itself.
    assert len(rendered.of("Pod")["trial-baton-test-generate"]["spec"]["containers"]) == 1


SECRET = {"secretKeyRef": {"name": "hf", "key": "token"}}


@pytest.mark.parametrize(
    "form",
    [
        {"HF_TOKEN": {"valueFrom": SECRET}, "LEVEL": "1"},
        [{"name": "HF_TOKEN", "valueFrom": SECRET}, {"name": "LEVEL", "value": "1"}],
    ],
    ids=["map", "list"],
)
@pytest.mark.parametrize("section", SECTIONS)
def test_env_with_value_from(brought: Any, section: str, form: Any) -> None:
    for name, pod in kinds_of(brought({f"{section}.env": form})).items():
        found = {key: value for key, value in env(pod).items() if key in ("HF_TOKEN", "LEVEL")}
        assert found == ({"HF_TOKEN": SECRET, "LEVEL": "1"} if name == section else {})


def test_env_of_a_section_goes_before_the_top_level_and_the_chart(brought: Any) -> None:
    changes = {
        "env": [{"name": "A", "value": "all"}, {"name": "HOME", "value": "/data"}],
        "envFrom": [{"secretRef": {"name": "more"}}],
        "gateway.env": {"A": "own", "NO": "text", "COUNT": "1000000"},
        "gateway.envFrom": [{"configMapRef": {"name": "mine"}}],
    }
    rendered = brought(changes)
    assert env(rendered.gateway).items() >= {"A": "own", "HOME": "/data", "NO": "text", "COUNT": "1000000"}.items()
    assert env(rendered.head).items() >= {"A": "all", "HOME": "/data"}.items()
    assert main(rendered.gateway)["envFrom"] == [{"secretRef": {"name": "more"}}, {"configMapRef": {"name": "mine"}}]


@pytest.mark.parametrize(
    "changes",
    [
        {"imagePullSecrets": [{"name": "x"}, "y"]},
        {"imagePullSecrets": ["x", "y"]},
        {"image.pullSecrets": [{"name": "x"}, {"name": "y"}]},
        {"global": {"imagePullSecrets": ["x"], "somebody": "else's"}, "image.pullSecrets": ["x", "y"]},
    ],
)
def test_pull_secrets_in_every_form(brought: Any, changes: Manifest) -> None:
    rendered = brought(changes)
    for pod in [*kinds_of(rendered).values(), rendered.of("Pod")["trial-baton-test-generate"]]:
        assert pod["spec"]["imagePullSecrets"] == [{"name": "x"}, {"name": "y"}]


def test_security_contexts(brought: Any) -> None:
    """OpenShift gives a namespace its users; a debugger wants a capability; both keep the rest."""
    changes = {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": 1000680000},
        "securityContext": {"runAsUser": None},
        "decodeWorkers.securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}, "readOnlyRootFilesystem": False},
    }
    rendered = brought(changes)
    for name, pod in kinds_of(rendered).items():
        context = pod["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["fsGroup"]) == (True, 1000680000)
        assert not {"runAsUser", "runAsGroup"} & set(context)
        own = main(pod)["securityContext"]
        assert "runAsUser" not in own
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is (name != "decodeWorkers")
        assert own["capabilities"] == (
            {"drop": ["ALL"], "add": ["SYS_PTRACE"]} if name == "decodeWorkers" else {"drop": ["ALL"]}
        )


def test_capabilities_are_added_to_those_of_rdma(chart: Chart, h100: Manifest) -> None:
    values = merged(h100, {"securityContext": {"capabilities": {"add": ["SYS_NICE"]}}})
    own = main(chart.render(values).worker("decode"))["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK", "SYS_NICE"]}


def test_host_network(brought: Any) -> None:
    changes = {"prefillWorkers.hostNetwork": True, "network": {"enabled": True, "nodeCidrs": ["10.0.0.0/16"]}}
    rendered = brought(changes)
    spec = rendered.worker("prefill")["spec"]
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert "hostNetwork" not in rendered.head["spec"]
    for policy in rendered.of("NetworkPolicy").values():
        assert {"from": [{"ipBlock": {"cidr": "10.0.0.0/16"}}]} in policy["spec"]["ingress"]


def test_services(brought: Any) -> None:
    changes = {
        "gateway.serviceType": "LoadBalancer",
        "gateway.ipFamilyPolicy": "PreferDualStack",
        "gateway.ipFamilies": ["IPv6", "IPv4"],
        "gateway.loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
        "gateway.externalTrafficPolicy": "Local",
        "gateway.loadBalancerClass": "example.org/lb",
        "gateway.serviceAnnotations": {"scheme": "internal", "protocol": "tcp"},
        "gateway.grpcServiceAnnotations": {"protocol": "h2"},
        "gateway.serviceLabels": {"exposed": "yes"},
        "gateway.nodePorts": {"grpc": 30051},
    }
    rendered = brought(changes)
    services = rendered.of("Service")
    for name, protocol in (("trial-baton-grpc", "h2"), ("trial-baton-http", "tcp")):
        assert services[name]["metadata"]["annotations"] == {"scheme": "internal", "protocol": protocol}
        assert services[name]["metadata"]["labels"]["exposed"] == "yes"
        spec = services[name]["spec"]
        assert spec["loadBalancerSourceRanges"] == ["10.0.0.0/8", "fd00::/8"]
        assert (spec["externalTrafficPolicy"], spec["loadBalancerClass"]) == ("Local", "example.org/lb")
    assert services["trial-baton-grpc"]["spec"]["ports"][0]["nodePort"] == 30051
    assert "nodePort" not in services["trial-baton-http"]["spec"]["ports"][0]
    for service in services.values():
        assert service["spec"]["ipFamilyPolicy"] == "PreferDualStack"
        assert service["spec"]["ipFamilies"] == ["IPv6", "IPv4"]
    # The address must then be one at which IPv6 is heard.
    assert "--host :: " in main(rendered.gateway)["args"][0]
    assert "--host 0.0.0.0 " in main(brought({}).gateway)["args"][0]


def test_sub_path_of_the_model(brought: Any) -> None:
    model = {"kind": "pvc", "claim": "models", "subPath": "team/smol", "fetch": {"image": "b:1", "command": ["get"]}}
    for pod in kinds_of(brought({"model": model})).values():
        for container in (main(pod), pod["spec"]["initContainers"][0]):
            (mount,) = (item for item in container["volumeMounts"] if item["name"] == "model")
            assert mount["subPath"] == "team/smol"


def test_hooks_and_probe_times(brought: Any) -> None:
    echo = {"exec": {"command": ["echo"]}}
    changes = {
        "lifecycle.postStart": echo,
        "gateway.lifecycle.preStop": {"sleep": {"seconds": 20}},
        "startupProbe": {"failureThreshold": 900},
        "decodeWorkers.livenessProbe": {"timeoutSeconds": 30},
    }
    rendered = brought(changes)
    for name, pod in kinds_of(rendered).items():
        container = main(pod)
        assert container["lifecycle"]["postStart"] == echo
        assert container["startupProbe"]["failureThreshold"] == 900
        assert container["startupProbe"]["httpGet"] == {"path": "/startupz", "port": "probes"}
        assert container["livenessProbe"]["timeoutSeconds"] == (30 if name == "decodeWorkers" else 5)
    assert main(rendered.gateway)["lifecycle"]["preStop"] == {"sleep": {"seconds": 20}}
    assert main(rendered.worker("decode"))["lifecycle"]["preStop"]["exec"]["command"][:2] == ["baton", "drain"]


def test_what_a_pod_has_once(brought: Any) -> None:
    changes = {
        "schedulerName": "volcano",
        "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["registry"]}],
        "shareProcessNamespace": True,
        "gateway.shareProcessNamespace": False,
        "gateway.automountServiceAccountToken": True,
        "decodeWorkers.terminationGracePeriodSeconds": 300,
    }
    rendered = brought(changes)
    for name, pod in kinds_of(rendered).items():
        spec = pod["spec"]
        assert spec["schedulerName"] == "volcano"
        assert spec["dnsConfig"]["options"][0]["name"] == "ndots"
        assert spec["hostAliases"][0]["hostnames"] == ["registry"]
        assert spec["shareProcessNamespace"] is (name != "gateway")
        assert spec["automountServiceAccountToken"] is (name in ("head", "gateway"))
    assert rendered.worker("decode")["spec"]["terminationGracePeriodSeconds"] == 300
    assert rendered.worker("prefill")["spec"]["terminationGracePeriodSeconds"] == 120


def test_classes_of_priority_and_runtime(brought: Any) -> None:
    """A section's goes before `priorityClasses`, and that before the top level's."""
    changes = {
        "priorityClassName": "all",
        "priorityClasses": {"workers": "workers", "gateway": "edge"},
        "gateway.priorityClassName": "own",
        "prefillWorkers.priorityClass": "mine",
        "runtimeClassName": "gvisor",
        "decodeWorkers.runtimeClass": "nvidia",
    }
    found = kinds_of(brought(changes))
    assert {name: pod["spec"]["priorityClassName"] for name, pod in found.items()} == {
        "head": "all", "gateway": "own", "prefillWorkers": "mine", "decodeWorkers": "workers",
    }  # fmt: skip
    assert {name: pod["spec"]["runtimeClassName"] for name, pod in found.items()} == {
        "head": "gvisor", "gateway": "gvisor", "prefillWorkers": "gvisor", "decodeWorkers": "nvidia",
    }  # fmt: skip


def test_labels_and_annotations_of_all_objects(brought: Any) -> None:
    changes = {"commonLabels": {"cost-center": "42"}, "commonAnnotations": {"owner": "someone"}}
    changes |= {"monitoring.serviceMonitor": True, "monitoring.labels": {"cost-center": "7", "release": "prom"}}
    rendered = brought({**changes, "network": {"enabled": True}, "disruption": {"enabled": True}})
    for item in rendered.objects:
        expected = "7" if item["kind"] in ("ServiceMonitor", "PodMonitor") else "42"
        assert item["metadata"]["labels"]["cost-center"] == expected, item["kind"]
        assert item["metadata"]["annotations"]["owner"] == "someone"
    for pod in rendered.pods:
        assert pod["metadata"]["labels"]["cost-center"] == "42"


def test_registry_of_a_parent_chart(brought: Any) -> None:
    for given, repository in (("mirror.example.org/", "baton"), ("mirror.example.org", "mirror.example.org/baton")):
        rendered = brought({"global": {"imageRegistry": given}, "image.repository": repository})
        assert main(rendered.gateway)["image"] == "mirror.example.org/baton:0.1.0-cpu"


def test_accounts_that_exist(brought: Any) -> None:
    rendered = brought({"serviceAccount": {"create": False, "name": "mine", "workerName": "theirs"}})
    found = {name: pod["spec"]["serviceAccountName"] for name, pod in kinds_of(rendered).items()}
    assert found == {"head": "mine", "gateway": "default", "prefillWorkers": "theirs", "decodeWorkers": "theirs"}
    assert rendered.of("RoleBinding")["trial-baton-head"]["subjects"][0]["name"] == "mine"
    made = brought({"serviceAccount": {"name": "mine"}})
    assert set(made.of("ServiceAccount")) == {"mine", "trial-baton-worker", "trial-baton-gateway"}
    assert made.head["spec"]["serviceAccountName"] == "mine"
    assert not {"Role", "RoleBinding"} & brought({"rbac": {"create": False}}).kinds


def test_null_is_an_empty_list(brought: Any) -> None:
    lists = ("tolerations", "extraVolumes", "envFrom", "imagePullSecrets", "extraObjects", "gateway.ipFamilies")
    assert brought(dict.fromkeys(lists)).gateway == brought({}).gateway


def test_gateways_deployment(brought: Any) -> None:
    changes = {"gateway.strategy": {"type": "Recreate"}, "gateway.revisionHistoryLimit": 0}
    (spec,) = (item["spec"] for item in brought(changes).of("Deployment").values())
    assert spec["strategy"] == {"type": "Recreate"}
    assert spec["revisionHistoryLimit"] == 0


def test_further_rules_of_the_policies(brought: Any) -> None:
    mesh = {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "mesh"}}}]}
    network = {"enabled": True, "gatewayIngress": [mesh], "clusterIngress": [{"ports": [{"port": 9100}]}]}
    policies = brought({"network": network}).of("NetworkPolicy")
    assert policies["trial-baton-gateway"]["spec"]["ingress"][-1] == mesh
    assert policies["trial-baton-r1"]["spec"]["ingress"][-1] == {"ports": [{"port": 9100}]}


def test_further_objects(brought: Any) -> None:
    text = 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "{{ .Release.Name }}-more"}'
    board = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"x": "{{instance}}"}}
    found = brought({"extraObjects": [text, board]}).of("ConfigMap")
    assert "trial-more" in found  # a text is a template
    assert found["b"]["data"] == {"x": "{{instance}}"}  # an object is not


DEVICES = {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example.org", "count": 2}}]}}


@pytest.mark.parametrize(
    ("version", "api"),
    [("1.31", "v1alpha3"), ("1.32", "v1beta1"), ("1.33", "v1beta2"), ("1.34", "v1"), ("1.37", "v1")],
)
def test_devices_by_claim(chart: Chart, h100: Manifest, version: str, api: str) -> None:
    claims = [{"name": "gpus", "spec": DEVICES}, {"name": "nic", "resourceClaimTemplateName": "nics", "request": "rx"}]
    values = merged(h100, {"decodeWorkers.resourceClaims": claims, "decodeWorkers.gpuResource": ""})
    rendered = chart.render(values, "--kube-version", f"{version}.0")
    rendered.fits(version)
    (template,) = rendered.of("ResourceClaimTemplate").values()
    assert template["apiVersion"] == f"resource.k8s.io/{api}"
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    exactly = {"deviceClassName": "gpu.example.org", "count": 2}
    assert request == {"name": "gpu", **({"exactly": exactly} if api in ("v1", "v1beta2") else exactly)}
    pod = rendered.worker("decode")
    assert {item["name"]: item["resourceClaimTemplateName"] for item in pod["spec"]["resourceClaims"]} == {
        "gpus": template["metadata"]["name"],
        "nic": "nics",
    }
    assert main(pod)["resources"]["claims"] == [{"name": "gpus"}, {"name": "nic", "request": "rx"}]
    assert "nvidia.com/gpu" not in main(pod)["resources"]["limits"]
    assert "--num-gpus=2 " in main(pod)["args"][0]  # Ray counts them all the same
    # A template cannot be changed; another specification is another template.
    changed = merged(values, {"decodeWorkers.resourceClaims": [{"name": "gpus", "spec": {**DEVICES, "x": 1}}]})
    assert set(chart.render(changed, "--kube-version", f"{version}.0").of("ResourceClaimTemplate")).isdisjoint(
        rendered.of("ResourceClaimTemplate")
    )
