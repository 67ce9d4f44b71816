"""The chart's values, once: `make chart` writes values.yaml (with each docstring as comment) and its JSON schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from cluster.spec.config import ClusterSpec
from scripts.chart_gateway import Gateway, GrpcRoute, HttpRoute, Ingress
from scripts.chart_model import ModelVolume
from scripts.chart_pod import Pod
from scripts.chart_types import (
    Annotations,
    Cidrs,
    Labels,
    ObjectName,
    Objects,
    SecretNames,
    Values,
    each,
    given,
)
from scripts.chart_workers import ExtraGroup, Group

NAME = r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$"


class Global(Values):
    """What a parent chart sets for all its charts; keys of others are let be."""

    model_config = ConfigDict(extra="allow")

    image_registry: str = ""
    """Registry in front of `image.repository`."""
    image_pull_secrets: SecretNames = []
    """Secrets for the registry."""


class Image(Values):
    """The one image of all containers."""

    repository: str = "baton"
    """Repository, with the registry in front of it, or without where `global.imageRegistry` names one."""
    tag: str = ""
    """Tag; empty takes `<appVersion>-<device>`."""
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Digest `sha256:...`; wins over the tag. Pin it in production."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What the image was built for; a group's `gpusPerWorker` must fit it."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull."""
    pull_secrets: SecretNames = []
    """Secrets for the registry: `[name]` or `[{name: name}]`; as the top level's `imagePullSecrets`."""


class Previous(Values):
    """The revision that an upgrade leaves behind."""

    revision: str = ""
    """Its name; empty: there is none, and its workers go once this release is applied."""
    tag: str = ""
    """Its image tag."""
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Its image digest."""


class Resources(Values):
    """Requests, equal to limits: Ray counts limits."""

    cpus: float = Field(1, gt=0)
    """CPU cores."""
    memory_gib: float = Field(2, gt=0)
    """Memory, GiB."""
    ephemeral_storage_gib: float = Field(5, gt=0)
    """Disk for logs and caches, GiB."""


class Head(Pod):
    """The Ray head: Ray's control processes and Baton's controller. It runs no engine."""

    cpus: float = Field(1, gt=0)
    """CPU cores."""
    memory_gib: float = Field(4, gt=0)
    """Memory, GiB."""
    ephemeral_storage_gib: float = Field(10, gt=0)
    """Disk, GiB: Ray's logs."""
    placement_timeout_s: int = Field(1800, ge=1)
    """Seconds a worker may wait for its node: image pull and node start included."""
    dashboard: bool = True
    """Serve Ray's dashboard inside the cluster, port 8265."""
    termination_grace_period_seconds: int = Field(60, ge=1)
    """Seconds that Ray and the controller have to end."""


class Secrets(Values):
    """Secrets that exist already; the chart creates none and holds no secret value. The paths belong into
    `config.security` (docs/security.md)."""

    api_keys: ObjectName = ""
    """Secret whose keys are files under /etc/baton/keys in the gateways: `security.api_keys_file`."""
    tls: ObjectName = ""
    """Secret of type kubernetes.io/tls, at /etc/baton/tls in the gateways: `security.tls`. cert-manager makes such."""
    cluster: ObjectName = ""
    """Secret whose keys are files under /etc/baton/cluster in all pods: `security.cluster_secret_file`."""
    internal_tls: ObjectName = ""
    """Secret with ca.crt, tls.crt and tls.key, at /etc/baton/internal-tls in all pods: `security.internal_tls`."""


class HelmTest(Pod):
    """The pod of `helm test`, and its credentials from Secrets that exist already."""

    key_secret: ObjectName = ""
    """Secret with an API key (`baton keys`) or token; needed where `config.security` asks for one."""
    key_field: str = "key"
    """Its field with the key."""
    ca_secret: ObjectName = ""
    """Secret with the authority of the gateways' certificate; empty takes `secrets.tls`."""
    ca_field: str = "ca.crt"
    """Its field with the authority; cert-manager writes `ca.crt`."""
    client_secret: ObjectName = ""
    """Secret of type kubernetes.io/tls that the pod shows; needed where `config.security.tls` asks for one (mTLS)."""


class Autoscaling(Values):
    """Ray's in-tree autoscaler v2. It starts pods for workers that wait, and ends empty ones."""

    enabled: bool = True
    """Let Ray's autoscaler change the number of pods between the groups' bounds."""
    idle_timeout_s: int = Field(120, ge=10)
    """Seconds until an empty pod is ended."""
    upscaling: Literal["Default", "Aggressive", "Conservative"] = "Default"
    """How many pods are started at once."""
    cpus: float = Field(0.5, gt=0)
    """CPU cores of the autoscaler's container."""
    memory_gib: float = Field(1, gt=0)
    """Memory of the autoscaler's container, GiB."""


class Topology(Values):
    """Where pods go."""

    spread_key: str = "kubernetes.io/hostname"
    """Node label over which a group's pods and the gateways spread; empty: no constraint."""
    spread_hard: bool = False
    """Rather not schedule than not spread."""
    together_key: str = ""
    """Node label of an NVLink or rack domain, such as `nvidia.com/gpu.clique`; all workers go to
    one. Empty: no rule."""
    together_hard: bool = True
    """Rather not schedule than leave the domain."""
    read_node_labels: bool = False
    """Let the controller read the labels of nodes, by a ClusterRole to list them: it pairs workers by `togetherKey` and
    `nvidia.com/gpu.clique`, keeps decode off spot nodes where it can, and shows the kind of GPU. Off: `rayLabels` alone
    say where a worker is."""


class PriorityClasses(Values):
    """PriorityClasses, which exist already."""

    head: ObjectName = ""
    """Head: losing it ends the cluster."""
    gateway: ObjectName = ""
    """Gateways."""
    workers: ObjectName = ""
    """Workers."""


class Disruption(Values):
    """PodDisruptionBudgets. A drain of a node empties its worker first, by preStop."""

    enabled: bool = True
    """Make the budgets: gateways, and each worker group."""
    max_unavailable: int = Field(1, ge=1)
    """Pods of one group, or gateways, that may be away at once."""
    protect_head: bool = True
    """Allow no eviction of the head, which has no second: `kubectl drain` of its node waits until you delete it."""


class Drain(Values):
    """How a worker pod ends."""

    grace_s: int = Field(120, ge=1)
    """terminationGracePeriodSeconds of worker pods. Above `config.drain.timeout_s` by at least 15."""


class Peer(Values):
    """Clients that may reach the gateways."""

    namespaces: Labels = {}
    """Labels of namespaces; with `anyNamespace` false and no labels, only the release's own."""
    any_namespace: bool = True
    """All pods of the cluster, and what comes through a load balancer."""


class Network(Values):
    """NetworkPolicies. Clients reach the gateways; workers, NIXL's side channel and Ray are reached from inside."""

    enabled: bool = True
    """Make the policies. They act only where the network plugin enforces them."""
    clients: Peer = Peer()
    """Clients of the gateways."""
    metrics_namespace: str = "monitoring"
    """Namespace from which Prometheus scrapes."""
    operator_namespace: str = "kuberay-system"
    """Namespace of the KubeRay operator, which asks the head's dashboard agent."""
    node_cidrs: Cidrs = []
    """Blocks of the nodes' addresses, let in everywhere; needed where pods use the node's network (`hostNetwork`)."""
    gateway_ingress: Annotated[Objects, each("networking.v1.NetworkPolicyIngressRule")] = []
    """Further rules of the gateways' policy."""
    cluster_ingress: Annotated[Objects, each("networking.v1.NetworkPolicyIngressRule")] = []
    """Further rules of the policy of head and workers."""


class ServiceAccount(Values):
    """Accounts: one for head, none with rights for the others."""

    create: bool = True
    """Create them."""
    name: ObjectName = ""
    """Name of the head's, which the Role is bound to; empty takes `<fullname>-head`, and without `create` it is
    needed."""
    worker_name: ObjectName = ""
    """Name of the workers'; empty takes `<fullname>-worker`, and without `create` `default`."""
    gateway_name: ObjectName = ""
    """Name of the gateways'; empty takes `<fullname>-gateway`, and without `create` `default`."""
    annotations: Annotations = {}
    """Annotations, for cloud identity."""


class Rbac(Values):
    """Rights of the head's account."""

    create: bool = True
    """Make Role and RoleBinding, and with `topology.readNodeLabels` ClusterRole and ClusterRoleBinding. Without them
    give the account what `helm template` with `rbac.create: true` shows."""


class Alerts(Values):
    """PrometheusRule."""

    enabled: bool = False
    """Make it; needs the Prometheus operator."""
    labels: Labels = {}
    """Labels by which the operator selects rules."""
    slo_target: float = Field(0.95, gt=0, lt=1)
    """Share of requests within the objectives of `config.slo`; the rest is the error budget that burn rates count."""
    kv_used_ratio: float = Field(0.95, gt=0, le=1)
    """Share of a pool's KV blocks in use that counts as exhausted."""
    min_transfer_gib_per_s: float = Field(2, gt=0)
    """KV rate of one transfer below which NVLink or RDMA is not in use: TCP was measured at 0.4, RDMA at 45 and up."""
    runbook_url: str = ""
    """Base of the runbook links; empty leaves them out."""


class Monitoring(Values):
    """Objects of the Prometheus operator and Grafana; all off, since they need their definitions installed."""

    service_monitor: bool = False
    """Scrape gateways and workers: a ServiceMonitor and a PodMonitor."""
    interval_s: int = Field(15, ge=1)
    """Seconds between scrapes."""
    labels: Labels = {}
    """Labels by which the operator selects monitors."""
    alerts: Alerts = Alerts()
    """Alerts."""
    dashboard: bool = False
    """ConfigMap with the Grafana dashboard, for the sidecar that looks for the label `grafana_dashboard`."""


class Probes(Values):
    """Bounds of the probes."""

    start_timeout_s: int = Field(1800, ge=10)
    """Seconds an engine may load before its pod is replaced, even if it makes progress."""
    stall_timeout_s: int = Field(300, ge=10)
    """Seconds in which a loading engine reads nothing and computes nothing before it counts as hung."""


class ChartValues(Pod):
    """Values of Baton's chart."""

    name_override: str = Field("", pattern=NAME)
    """Name in place of the chart's."""
    fullname_override: str = Field("", pattern=NAME)
    """Name of all objects in place of `<release>-<chart>`; cut at 35 letters, since KubeRay takes no longer ones."""
    revision: str = Field("r1", pattern="^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$")
    """Revision of engine and image. It names the RayCluster: a new one is a new RayCluster with a registry of its own,
    so no worker of one engine version is ever paired with one of another."""
    previous: Previous = Previous()
    """During an upgrade: the revision that goes on serving until its streams end (docs/kubernetes.md)."""
    image: Image = Image()
    """Image."""
    image_pull_secrets: SecretNames = []
    """Secrets for the registry: `[name]` or `[{name: name}]`."""
    common_labels: Labels = {}
    """Labels of all objects and pods."""
    common_annotations: Annotations = {}
    """Annotations of all objects."""
    global_: Global = Field(Global(), alias="global")
    """What a parent chart sets for all its charts; keys of others are let be."""
    config: ClusterSpec
    """The cluster spec, copied as it is into the ConfigMap and read by every process: pools, model, objectives.
    `baton plan emit` writes it; ready ones are in helm/ci/. Keys and units: cluster/spec/*_settings.py."""
    model: ModelVolume = ModelVolume()
    """Model volume."""
    head: Head = Head()
    """Ray head and controller."""
    gateway: Gateway = Gateway()
    """Gateways."""
    prefill_workers: Group = Group()
    """Prefill workers."""
    decode_workers: Group = Group()
    """Decode workers."""
    colocated_workers: Group = Group()
    """Workers that do both."""
    extra_worker_groups: list[ExtraGroup] = []
    """Further groups, each with `name`, `role` and the keys of `prefillWorkers`. All groups of a role together have as
    many replicas as its pool in `config`."""
    autoscaling: Autoscaling = Autoscaling()
    """Autoscaling."""
    ray_token: bool = False
    """Have Ray ask its own processes and the dashboard's callers for a token (KubeRay 1.5.1 or newer makes it)."""
    secrets: Secrets = Secrets()
    """Secrets by name."""
    helm_test: HelmTest = HelmTest()
    """What `helm test` shows and which authority it trusts."""
    topology: Topology = Topology()
    """Topology."""
    priority_classes: PriorityClasses = PriorityClasses()
    """Priorities."""
    drain: Drain = Drain()
    """Drain."""
    disruption: Disruption = Disruption()
    """Disruption budgets."""
    probes: Probes = Probes()
    """Probes."""
    network: Network = Network()
    """Network policies."""
    service_account: ServiceAccount = ServiceAccount()
    """Service accounts."""
    rbac: Rbac = Rbac()
    """Rights."""
    ingress: Ingress = Ingress()
    """Ingress for HTTP."""
    grpc_ingress: Ingress = Ingress()
    """Ingress for gRPC. Most controllers want TLS and an annotation for it, such as
    `nginx.ingress.kubernetes.io/backend-protocol: GRPC`."""
    http_route: HttpRoute = HttpRoute()
    """HTTPRoute."""
    grpc_route: GrpcRoute = GrpcRoute()
    """GRPCRoute."""
    extra_objects: Annotated[
        list[Any],
        WithJsonSchema(
            {
                "type": "array",
                "items": given(
                    {"type": "object"}, {"required": ["apiVersion", "kind", "metadata"]}, {"type": "string"}
                ),
            }
        ),
    ] = []
    """Further objects of the release. A text is a template; an object is taken as it is."""
    monitoring: Monitoring = Monitoring()
    """Monitoring."""
