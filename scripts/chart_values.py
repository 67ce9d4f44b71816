"""The chart's values, once: `make chart` writes values.yaml (with each docstring as comment) and its JSON schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from cluster.config import ClusterSpec

Name = Field(pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")


class Values(BaseModel):
    """Base of all sections: camelCase keys, closed to unknown ones."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, alias_generator=to_camel, populate_by_name=True
    )


class Image(Values):
    """The one image of all containers."""

    repository: str = "baton"
    """Repository, with the registry in front of it."""
    tag: str = ""
    """Tag; empty takes `<appVersion>-<device>`."""
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Digest `sha256:...`; wins over the tag. Pin it in production."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What the image was built for; a group's `gpusPerWorker` must fit it."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull."""
    pull_secrets: list[str] = []
    """Names of Secrets for the registry."""


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


class Rdma(Values):
    """RDMA devices of a worker pod."""

    resource: str = ""
    """Extended resource of the device plugin, such as `rdma/hca_shared_devices_a`; empty: no RDMA."""
    devices: int = Field(1, ge=1)
    """Devices per pod."""
    ipc_lock: bool = True
    """Add the `IPC_LOCK` capability: memory that a NIC reads is pinned."""
    hugepages2_mib_gib: float = Field(0, ge=0, alias="hugepages2MiGib")
    """Pages of 2 MiB reserved for the pod, GiB; the node must have them."""


class Group(Values):
    """One worker group: pods of one kind. A pod runs one worker, or, above `gpusPerNode`, a part of one."""

    replicas: int | None = Field(None, ge=0)
    """Workers; empty takes `replicas` and `standby_replicas` of the pool of the same role in `config`."""
    min_replicas: int | None = Field(None, ge=0)
    """Fewest workers when scaling; empty takes `min_replicas` and `standby_replicas` of the pool where
    `config.autoscaling` is on, else `replicas`."""
    max_replicas: int | None = Field(None, ge=0)
    """Most workers when scaling; empty takes `max_replicas` and `standby_replicas` of the pool in `config`, or
    `replicas`."""
    standby_replicas: int = Field(0, ge=0)
    """Pods started beyond `replicas`: image pulled, model mounted, Ray joined, no engine yet. A lost worker's
    replacement starts there without waiting for a node. Workers with a loaded engine that wait are `standby_replicas`
    of the pool in `config`."""
    gpus_per_worker: int = Field(0, ge=0)
    """GPUs of a worker; the same as `accelerators_per_worker` in `config`. 0 is CPU."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of a node. A worker with more takes several pods (KubeRay's `numOfHosts`)."""
    tensor_parallel_size: int = Field(1, ge=1)
    """As in `config`; checked to be equal."""
    gpu: str = ""
    """GPU kind by Ray's name (`H100`); as `accelerator_type` in `config`."""
    gpu_resource: str = "nvidia.com/gpu"
    """Extended resource of the GPU device plugin."""
    cpus: float | None = Field(None, gt=0)
    """CPU cores of a pod; empty takes `cpus_per_worker` of the pool plus half a core for Ray."""
    memory_gib: float = Field(8, gt=0)
    """Memory of a pod, GiB. Weights of a CPU engine, its KV and 3 GiB for Python and Ray."""
    ephemeral_storage_gib: float = Field(10, gt=0)
    """Disk of a pod, GiB."""
    shared_memory_gib: float = Field(1, gt=0)
    """Size of /dev/shm, GiB: NCCL, NIXL's shared memory and Ray's object store. Counts as memory of the pod."""
    rdma: Rdma = Rdma()
    """RDMA devices."""
    ray_labels: dict[str, str] = {}
    """Further Ray node labels; `baton.io/nvlink-domain` names the NVLink domain where the group has just one."""
    node_selector: dict[str, str] = {}
    """Node labels the pods need, such as a GPU kind or a spot pool."""
    tolerations: list[dict[str, Any]] = []
    """Taints the pods bear. GPU nodes' `nvidia.com/gpu` is added where the group has GPUs."""
    runtime_class: str = ""
    """RuntimeClass, such as `nvidia`."""
    priority_class: str = ""
    """PriorityClass; empty takes `priorityClasses.workers`."""
    idle_timeout_s: int | None = Field(None, ge=10)
    """Seconds until Ray's autoscaler takes an empty pod; empty takes `autoscaling.idleTimeoutS`."""
    env: dict[str, str] = {}
    """Further environment, such as `UCX_NET_DEVICES` or `NCCL_SOCKET_IFNAME`."""


class ExtraGroup(Group):
    """A further worker group, such as another GPU kind or spot nodes."""

    name: str = Name
    """Name, unique among the groups."""
    role: Literal["prefill", "decode", "colocated"]
    """Pool that its workers belong to."""


class Head(Values):
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
    node_selector: dict[str, str] = {}
    """Node labels the pod needs."""
    tolerations: list[dict[str, Any]] = []
    """Taints the pod bears."""


class Secrets(Values):
    """Secrets that exist already; the chart creates none and holds no secret value. The paths belong into
    `config.security` (docs/security.md)."""

    api_keys: str = ""
    """Secret whose keys are files under /etc/baton/keys in the gateways: `security.api_keys_file`."""
    tls: str = ""
    """Secret of type kubernetes.io/tls, at /etc/baton/tls in the gateways: `security.tls`. cert-manager makes such."""
    cluster: str = ""
    """Secret whose keys are files under /etc/baton/cluster in all pods: `security.cluster_secret_file`."""
    internal_tls: str = ""
    """Secret with ca.crt, tls.crt and tls.key, at /etc/baton/internal-tls in all pods: `security.internal_tls`."""


class HelmTest(Values):
    """Credentials of the pod of `helm test`, from Secrets that exist already."""

    key_secret: str = ""
    """Secret with an API key (`baton keys`) or token; needed where `config.security` asks for one."""
    key_field: str = "key"
    """Its field with the key."""
    ca_secret: str = ""
    """Secret with the authority of the gateways' certificate; empty takes `secrets.tls`."""
    ca_field: str = "ca.crt"
    """Its field with the authority; cert-manager writes `ca.crt`."""
    client_secret: str = ""
    """Secret of type kubernetes.io/tls that the pod shows; needed where `config.security.tls` asks for one (mTLS)."""


class Gateway(Values):
    """The door: gRPC, OpenAI HTTP, metrics. Stateless but for the requests it streams."""

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
    """Type of both Services."""
    service_annotations: dict[str, str] = {}
    """Annotations of both Services."""
    node_selector: dict[str, str] = {}
    """Node labels the pods need."""
    tolerations: list[dict[str, Any]] = []
    """Taints the pods bear."""
    env: dict[str, str] = {}
    """Further environment."""


class ModelFetch(Values):
    """An init container that fills the volume."""

    image: str = ""
    """Image with the tool, such as a bucket's command line; empty: none."""
    command: list[str] = []
    """Its command. The volume is at `model.mountPath`, writable."""
    env_from_secret: str = ""
    """Secret with its credentials, as environment."""


class ModelVolume(Values):
    """Where the weights come from. `config.model.path` is below `mountPath`."""

    mount_path: str = Field("/models", pattern="^/.+")
    """Folder in all containers."""
    kind: Literal["pvc", "hostPath", "image", "emptyDir"] = "pvc"
    """`pvc`: a claim all nodes can read. `hostPath`: a folder on each node. `image`: an OCI artifact (Kubernetes
    1.33 and up). `emptyDir`: filled by `fetch` at each start."""
    claim: str = ""
    """Name of the PersistentVolumeClaim."""
    host_path: str = ""
    """Folder on the nodes."""
    image: str = ""
    """OCI reference."""
    size_gib: float = Field(20, gt=0)
    """Limit of the emptyDir, GiB."""
    fetch: ModelFetch = ModelFetch()
    """Init container; with kind `emptyDir`, or `pvc` that allows writing."""


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

    head: str = ""
    """Head: losing it ends the cluster."""
    gateway: str = ""
    """Gateways."""
    workers: str = ""
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
    """Who may reach the gateways."""

    namespaces: dict[str, str] = {}
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


class ServiceAccount(Values):
    """Accounts: one for head, none with rights for the others."""

    create: bool = True
    """Create them."""
    name: str = ""
    """Name of the head's when not created here; it needs the Role in `templates/role.yaml`."""
    annotations: dict[str, str] = {}
    """Annotations, for cloud identity."""


class Alerts(Values):
    """PrometheusRule."""

    enabled: bool = False
    """Make it; needs the Prometheus operator."""
    labels: dict[str, str] = {}
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
    labels: dict[str, str] = {}
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


class ChartValues(Values):
    """Values of Baton's chart."""

    name_override: str = ""
    """Name in place of the chart's."""
    fullname_override: str = ""
    """Name of all objects in place of `<release>-<chart>`."""
    revision: str = Field("r1", pattern="^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$")
    """Revision of engine and image. It names the RayCluster: a new one is a new RayCluster with a registry of its own,
    so no worker of one engine version is ever paired with one of another."""
    previous: Previous = Previous()
    """During an upgrade: the revision that goes on serving until its streams end (docs/kubernetes.md)."""
    image: Image = Image()
    """Image."""
    config: ClusterSpec
    """The cluster spec, copied as it is into the ConfigMap and read by every process: pools, model, objectives.
    `baton plan emit` writes it; ready ones are in helm/ci/. Keys and units: cluster/config.py."""
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
    """What `helm test` shows and whom it believes."""
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
    monitoring: Monitoring = Monitoring()
    """Monitoring."""
