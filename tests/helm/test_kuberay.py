"""The rendered RayCluster as KubeRay takes it: fields it knows (the API server drops others without a word), and what
its operator refuses. Written from KubeRay's definition and validation; docs/lab-notes.md says which was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.helm.chart import CI_VALUES, Chart, Manifest, merged

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
POD_TEMPLATE = {"type": "object", "properties": {"metadata": {}, "spec": {}}, "additionalProperties": False}
"""What is in it is a pod's, which tests/helm/test_chart.py checks against Kubernetes."""


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


SPEC = closed(
    ["headGroupSpec"],
    authOptions=closed([], mode={"enum": ["disabled", "token"]}, enableK8sTokenAuth={"type": "boolean"}),
    autoscalerOptions=closed(
        [],
        env={"type": "array"},
        envFrom={"type": "array"},
        idleTimeoutSeconds=COUNT,
        image={"type": "string"},
        imagePullPolicy={"type": "string"},
        resources=closed([], limits=TEXTS, requests=TEXTS),
        securityContext={"type": "object"},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
        volumeMounts={"type": "array"},
    ),
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=closed(
        ["template"],
        enableIngress={"type": "boolean"},
        headService={"type": "object"},
        labels=TEXTS,
        rayStartParams=TEXTS,
        resources=TEXTS,
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        template=POD_TEMPLATE,
    ),
    headServiceAnnotations=TEXTS,
    rayVersion={"type": "string"},
    suspend={"type": "boolean"},
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            ["groupName", "maxReplicas", "minReplicas", "template"],
            groupName={"type": "string"},
            idleTimeoutSeconds=COUNT,
            labels=TEXTS,
            maxReplicas=COUNT,
            minReplicas=COUNT,
            numOfHosts=COUNT,
            rayStartParams=TEXTS,
            replicas=COUNT,
            resources=TEXTS,
            scaleStrategy=closed([], workersToDelete={"type": "array", "items": {"type": "string"}}),
            suspend={"type": "boolean"},
            template=POD_TEMPLATE,
        ),
    },
)
DNS_LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"
LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
OWN_RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources", "labels"}


@pytest.mark.parametrize("autoscaling", [True, False])
@pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.stem)
def test_ray_cluster_is_one_that_kuberay_takes(chart: Chart, path: Path, autoscaling: bool) -> None:
    import re

    import yaml

    values = merged(yaml.safe_load(path.read_text()), {"autoscaling": {"enabled": autoscaling}, "rayToken": True})
    for cluster in chart.render(values).ray_clusters:
        spec = cluster["spec"]
        jsonschema.validate(spec, SPEC)
        assert re.fullmatch(DNS_LABEL, cluster["metadata"]["name"])
        assert len(cluster["metadata"]["name"]) <= 50
        if autoscaling:  # its container is a part of the head's pod
            volumes = {volume["name"] for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"]}
            assert {mount["name"] for mount in spec["autoscalerOptions"]["volumeMounts"]} <= volumes
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        for group in groups:
            # Resources and labels are stated in fields of their own; in both places they are refused.
            assert not OWN_RESOURCE_PARAMS & set(group["rayStartParams"])
            assert all(re.fullmatch(LABEL_VALUE, value) for value in group["labels"].values())
            assert group["template"]["spec"]["restartPolicy"] == "Never"  # asked for by autoscaler v2
        # KubeRay sets it by autoscalerOptions.version, and refuses a head that sets it, too.
        env = {entry["name"] for group in groups for entry in group["template"]["spec"]["containers"][0]["env"]}
        assert "RAY_enable_autoscaler_v2" not in env
        # The token needs Ray 2.52.
        assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52)


def test_the_schema_refuses_what_kuberay_would_drop(chart: Chart, trial: Manifest) -> None:
    (cluster,) = chart.render(trial).ray_clusters
    cluster["spec"]["workerGroupSpecs"][0]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(cluster["spec"], SPEC)


def test_ray_token_switch(chart: Chart, trial: Manifest) -> None:
    assert chart.render(merged(trial, {"rayToken": True})).ray_clusters[0]["spec"]["authOptions"] == {"mode": "token"}
    assert "authOptions" not in chart.render(trial).ray_clusters[0]["spec"]


def test_names_that_kuberay_refuses_are_refused_here(chart: Chart, trial: Manifest) -> None:
    from tests.helm.chart import RenderFailed

    with pytest.raises(RenderFailed, match="begin with a letter"):
        chart.render(merged(trial, {"fullnameOverride": "4u"}))
