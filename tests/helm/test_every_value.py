"""One release with every value that goes into an object as it is: valid for each version, and nothing left untried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scripts.chart_gateway import Gateway, GrpcRoute, HttpRoute, Ingress
from scripts.chart_pod import Pod
from scripts.chart_readme import own_fields
from tests.helm.chart import VERSIONS, Chart, Manifest
from tests.helm.test_kuberay import SPEC, closed

EVERYTHING = Path(__file__).parent / "everything-values.yaml"


@pytest.fixture
def everything() -> Manifest:
    values: Manifest = yaml.safe_load(EVERYTHING.read_text())
    return values


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_valid(chart: Chart, everything: Manifest, version: str) -> None:
    rendered = chart.render(everything, "--kube-version", f"{version}.0")
    rendered.fits(version)
    (cluster,) = rendered.ray_clusters
    jsonschema.validate(cluster["spec"], SPEC)


def test_no_key_is_left_untried(everything: Manifest) -> None:
    """A new value for pods, gateways or routes has to be added here, where it is validated."""
    everywhere = [everything, *(value for value in everything.values() if isinstance(value, dict))]
    for name, info in Pod.model_fields.items():
        assert any((info.alias or name) in section for section in everywhere), name
    for model, section in (
        (Gateway, everything["gateway"]),
        (Ingress, everything["ingress"]),
        (HttpRoute, everything["httpRoute"]),
        (GrpcRoute, everything["httpRoute"]),
    ):
        for name, info in own_fields(model):
            if (info.alias or name) not in ("cpus", "memoryGib", "ephemeralStorageGib", "graceS", "serverName"):
                assert (info.alias or name) in section, name


def test_large_numbers_stay_numbers(chart: Chart, everything: Manifest) -> None:
    """Helm reads numbers as floats; OpenShift's users are above a billion."""
    rendered = chart.render(everything)
    for pod in rendered.pods:
        assert pod["spec"]["securityContext"]["runAsUser"] == 1000680000
        assert isinstance(pod["spec"]["securityContext"]["runAsUser"], int)


TEXT = {"type": "string"}
SOME: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": 16}
BACKEND = closed(
    ["name", "port"],
    group=TEXT,
    kind=TEXT,
    name=TEXT,
    namespace=TEXT,
    port={"type": "integer", "minimum": 1, "maximum": 65535},
    weight={"type": "integer"},
    filters={"type": "array"},
)
PARENT = closed(["name"], group=TEXT, kind=TEXT, name=TEXT, namespace=TEXT, sectionName=TEXT, port={"type": "integer"})
HEADER = closed(["name", "value"], type={"enum": ["Exact", "RegularExpression"]}, name=TEXT, value=TEXT)


def route(match: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A route of the Gateway API v1, from its documentation; written here, since it is no part of Kubernetes. Filters
    are taken as they come."""
    rule = closed(
        [],
        name=TEXT,
        matches={"type": "array", "items": match, "maxItems": 64},
        filters={"type": "array", "items": {"type": "object", "required": ["type"]}},
        backendRefs={**SOME, "items": BACKEND},
        **more,
    )
    return closed([], parentRefs={**SOME, "items": PARENT}, hostnames={"type": "array"}, rules={**SOME, "items": rule})


ROUTES = {
    "HTTPRoute": route(
        closed(
            [],
            path=closed([], type={"enum": ["Exact", "PathPrefix", "RegularExpression"]}, value={"pattern": "^/"}),
            headers={"type": "array", "items": HEADER},
            queryParams={"type": "array", "items": HEADER},
            method={"enum": ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]},
        ),
        timeouts=closed([], request={"pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}, backendRequest={"type": "string"}),
    ),
    "GRPCRoute": route(
        closed(
            [],
            method=closed([], type={"enum": ["Exact", "RegularExpression"]}, service=TEXT, method=TEXT),
            headers={"type": "array", "items": HEADER},
        )
    ),
}


@pytest.mark.parametrize(("kind", "service"), [("HTTPRoute", "http"), ("GRPCRoute", "grpc")])
def test_routes(chart: Chart, everything: Manifest, kind: str, service: str) -> None:
    rendered = chart.render(everything)
    (found,) = rendered.of(kind).values()
    assert found["apiVersion"] == "gateway.networking.k8s.io/v1"
    jsonschema.validate(found["spec"], ROUTES[kind])
    (port,) = rendered.of("Service")[f"trial-baton-{service}"]["spec"]["ports"]
    for rule in found["spec"]["rules"]:
        assert rule["backendRefs"] == [{"name": f"trial-baton-{service}", "port": port["port"]}]


def test_route_of_the_default_rule(chart: Chart, trial: Manifest) -> None:
    trial["httpRoute"] = {"enabled": True, "parentRefs": [{"name": "gw"}]}
    (found,) = chart.render(trial).of("HTTPRoute").values()
    jsonschema.validate(found["spec"], ROUTES["HTTPRoute"])
    assert found["spec"]["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]


def test_ingresses(chart: Chart, everything: Manifest) -> None:
    rendered = chart.render(everything)
    ingress = rendered.of("Ingress")["trial-baton-http"]
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "3600"
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert [(rule["host"], rule["http"]["paths"][0]["path"]) for rule in ingress["spec"]["rules"]] == [
        ("chat.example.org", "/"),
        ("b.example.org", "/v1"),
    ]
    for name, item in rendered.of("Ingress").items():
        (port,) = rendered.of("Service")[name]["spec"]["ports"]
        for rule in item["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"] == {"name": name, "port": {"name": port["name"]}}


def test_routes_and_ingresses_are_off(chart: Chart, trial: Manifest) -> None:
    assert not {"Ingress", "HTTPRoute", "GRPCRoute", "ResourceClaimTemplate"} & chart.render(trial).kinds


def test_notes_of_a_closed_release_with_a_route(chart: Chart, everything: Manifest) -> None:
    assert "the controller behind ingress" not in chart.notes(everything)
    everything["network"]["clients"] = {"anyNamespace": False}
    assert "the controller behind ingress or route is a client, too" in chart.notes(everything)


def test_readme_has_every_value() -> None:
    """With its default; sections have theirs in their keys."""
    from scripts.chart_values import ChartValues

    text = (Path(__file__).parents[2] / "helm" / "README.md").read_text()
    for name, info in ChartValues.model_fields.items():
        key = info.alias or name
        assert f"`{key}`" in text or f"`{key}." in text or f"## {key}\n" in text, key
    assert "| `gateway.replicas` | `2` | Pods. |" in text
    assert "| `config.pools.prefill.replicas` | needed |" in text
    assert "| `extraWorkerGroups[].role` | needed |" in text
