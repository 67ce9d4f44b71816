"""Values of the worker groups."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from scripts.chart_pod import Pod
from scripts.chart_types import Labels, ObjectName, Objects, ResourceName, Values, closed

Name = Field(pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")
CLAIM = closed(
    ["name"],
    name={"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?$"},
    request={"type": "string"},
    resourceClaimName={"type": "string"},
    resourceClaimTemplateName={"type": "string"},
    spec={"type": "object", "required": ["devices"]},
)


class Rdma(Values):
    """RDMA devices of a worker pod."""

    resource: ResourceName = ""
    """Extended resource of the device plugin, such as `rdma/hca_shared_devices_a`; empty: no RDMA."""
    devices: int = Field(1, ge=1)
    """Devices per pod."""
    ipc_lock: bool = True
    """Add the `IPC_LOCK` capability: memory that a NIC reads is pinned."""
    hugepages2_mib_gib: float = Field(0, ge=0, alias="hugepages2MiGib")
    """Pages of 2 MiB reserved for the pod, GiB; the node must have them."""


class Group(Pod):
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
    gpu_resource: ResourceName = "nvidia.com/gpu"
    """Extended resource of the GPU device plugin; empty where `resourceClaims` bring the GPUs."""
    resource_claims: Annotated[Objects, WithJsonSchema({"type": "array", "items": CLAIM})] = []
    """Devices by dynamic resource allocation: `[{name: gpus, spec: {devices: ...}}]` makes a ResourceClaimTemplate, its
    `spec` as in `resource.k8s.io/v1` and rewritten for older versions; `resourceClaimTemplateName` or
    `resourceClaimName` take one that exists; `request` takes one request of the claim for the engine."""
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
    ray_labels: Labels = {}
    """Further Ray node labels; `baton.io/nvlink-domain` names the NVLink domain where the group has just one."""
    runtime_class: ObjectName = ""
    """RuntimeClass, such as `nvidia`; the same as `runtimeClassName`."""
    priority_class: ObjectName = ""
    """PriorityClass; empty takes `priorityClassName` or `priorityClasses.workers`."""
    termination_grace_period_seconds: int | None = Field(None, ge=1)
    """Seconds that a pod has to drain; empty takes `drain.graceS`."""
    idle_timeout_s: int | None = Field(None, ge=10)
    """Seconds until Ray's autoscaler takes an empty pod; empty takes `autoscaling.idleTimeoutS`."""


class ExtraGroup(Group):
    """A further worker group, such as another GPU kind or spot nodes."""

    name: str = Name
    """Name, unique among the groups."""
    role: Literal["prefill", "decode", "colocated"]
    """Pool that its workers belong to."""
