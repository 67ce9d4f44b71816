"""Values of the gateways and of what stands in front of them: Services, Ingress, routes of the Gateway API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from scripts.chart_pod import Pod
from scripts.chart_types import (
    HOST,
    TEXT,
    Annotations,
    Cidrs,
    Labels,
    Object,
    ObjectName,
    Objects,
    Values,
    a,
    closed,
    each,
    given,
)

NodePort = Annotated[int | None, Field(ge=1, le=65535)]
Family = Literal["IPv4", "IPv6"]

_PATHS = {
    "type": "array",
    "items": closed(
        ["path"],
        path={"type": "string", "pattern": "^/"},
        pathType={"enum": ["Prefix", "Exact", "ImplementationSpecific"]},
    ),
}
_HOST = {"type": "string", "pattern": HOST}
_PARENT = closed(
    ["name"],
    group=TEXT,
    kind=TEXT,
    namespace=TEXT,
    name={"type": "string", "minLength": 1},
    sectionName=TEXT,
    port={"type": "integer", "minimum": 1, "maximum": 65535},
)
_NAMED = closed(["name", "value"], name=TEXT, value=TEXT, type={"enum": ["Exact", "RegularExpression"]})
_DURATION = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
_HTTP_MATCH = closed(
    [],
    path=closed([], type={"enum": ["Exact", "PathPrefix", "RegularExpression"]}, value=TEXT),
    method=TEXT,
    headers={"type": "array", "items": _NAMED},
    queryParams={"type": "array", "items": _NAMED},
)
_GRPC_MATCH = closed(
    [],
    method=closed([], type={"enum": ["Exact", "RegularExpression"]}, service=TEXT, method=TEXT),
    headers={"type": "array", "items": _NAMED},
)
_FILTERS = {"type": "array", "items": {"type": "object", "required": ["type"]}}


def _rules(match: dict[str, Any], **more: dict[str, Any]) -> WithJsonSchema:
    rule = closed([], name=TEXT, matches={"type": "array", "items": match}, filters=_FILTERS, **more)
    return WithJsonSchema({"type": "array", "items": rule})


class Ingress(Values):
    """An Ingress to one of the gateways' Services."""

    enabled: bool = False
    """Make it."""
    class_name: ObjectName = ""
    """IngressClass; empty: the cluster's default."""
    annotations: Annotations = {}
    """Annotations: controllers want limits on time and buffering raised for long streams."""
    labels: Labels = {}
    """Labels."""
    hosts: Annotated[
        list[Any],
        WithJsonSchema(
            {"type": "array", "items": given({"type": "object"}, closed(["host"], host=_HOST, paths=_PATHS), _HOST)}
        ),
    ] = []
    """Hosts: `name`, or `{host: name, paths: [{path: /, pathType: Prefix}]}`; an empty name is any host."""
    tls: Annotated[Objects, each("networking.v1.IngressTLS")] = []
    """Certificates: `[{secretName: name, hosts: [name]}]`."""


class Route(Values):
    """What both routes of the Gateway API have."""

    enabled: bool = False
    """Make it; the Gateway API's definitions must be installed."""
    annotations: Annotations = {}
    """Annotations."""
    labels: Labels = {}
    """Labels."""
    parent_refs: Annotated[list[dict[str, Any]], WithJsonSchema({"type": "array", "items": _PARENT})] = []
    """Gateways that it hangs on: `[{name: name, namespace: name, sectionName: name}]`."""
    hostnames: list[Annotated[str, Field(pattern=HOST, min_length=1)]] = []
    """Hosts; empty: those of the Gateway's listeners."""


class HttpRoute(Route):
    """An HTTPRoute to the gateways' HTTP Service."""

    rules: Annotated[Objects, _rules(_HTTP_MATCH, timeouts=closed([], request=_DURATION, backendRequest=_DURATION))] = [
        {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}
    ]
    """Rules: `matches`, `filters`, `timeouts`. The chart adds the Service. A controller's own limit on time cuts long
    streams; `timeouts: {request: 0s}` lifts it where the controller knows the field."""


class GrpcRoute(Route):
    """A GRPCRoute to the gateways' gRPC Service."""

    rules: Annotated[Objects, _rules(_GRPC_MATCH)] = [{}]
    """Rules: `matches`, `filters`. The chart adds the Service."""


class NodePorts(Values):
    """Ports on the nodes, with `serviceType` NodePort or LoadBalancer; empty: free ones."""

    grpc: NodePort = None
    """Of the gRPC Service."""
    http: NodePort = None
    """Of the HTTP Service."""


class Gateway(Pod):
    """The gateways: gRPC, OpenAI HTTP, metrics. Stateless but for the requests it streams."""

    replicas: int = Field(2, ge=1)
    """Pods."""
    cpus: float = Field(1, gt=0)
    """CPU cores of a pod."""
    memory_gib: float = Field(2, gt=0)
    """Memory of a pod, GiB."""
    ephemeral_storage_gib: float = Field(2, gt=0)
    """Disk of a pod, GiB."""
    grace_s: int = Field(630, ge=1)
    """Seconds that a stopped pod has to finish its streams."""
    server_name: str = Field("", pattern=r"^([a-z0-9*]([a-z0-9.-]*[a-z0-9])?)?$")
    """Name in the certificate of `secrets.tls`, which `helm test` and `baton status --release` ask for; empty takes
    `<release>-baton-grpc.<namespace>.svc`."""
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the gRPC and the HTTP Service."""
    service_annotations: Annotations = {}
    """Annotations of both Services."""
    grpc_service_annotations: Annotations = {}
    """Annotations of the gRPC Service alone."""
    http_service_annotations: Annotations = {}
    """Annotations of the HTTP Service alone."""
    service_labels: Labels = {}
    """Labels of both Services."""
    node_ports: NodePorts = NodePorts()
    """Ports on the nodes."""
    ip_family_policy: Literal["", "SingleStack", "PreferDualStack", "RequireDualStack"] = ""
    """IP families of the three Services; empty: the cluster's default."""
    ip_families: list[Family] = Field([], max_length=2)
    """Families in order, `[IPv4, IPv6]`. With IPv6 among them, or two, the gateways listen on both."""
    load_balancer_class: str = ""
    """Class of the load balancer."""
    load_balancer_ip: str = Field("", alias="loadBalancerIP")
    """Its address, where the provider still goes by this field."""
    load_balancer_source_ranges: Cidrs = []
    """Blocks of addresses that it lets in."""
    allocate_load_balancer_node_ports: bool | None = None
    """Give a load balancer ports on the nodes; empty: yes."""
    external_traffic_policy: Literal["", "Cluster", "Local"] = ""
    """`Local` keeps the caller's address and goes only to nodes with a gateway."""
    internal_traffic_policy: Literal["", "Cluster", "Local"] = ""
    """`Local` keeps calls of pods on their node."""
    external_ips: list[str] = Field([], alias="externalIPs")
    """Further addresses at which nodes take calls."""
    session_affinity: Literal["", "None", "ClientIP"] = ""
    """`ClientIP` sends a caller to the same gateway."""
    strategy: Annotated[Object, a("apps.v1.DeploymentStrategy")] = {}
    """How an upgrade replaces the pods; empty: one more at a time, none less."""
    revision_history_limit: int | None = Field(None, ge=0)
    """Old ReplicaSets that are kept; empty: Kubernetes' 10."""
    min_ready_seconds: int = Field(0, ge=0, le=600)
    """Seconds that a new pod is ready before an old one goes."""
