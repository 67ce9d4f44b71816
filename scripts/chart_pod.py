"""Values that every pod of the chart takes: at the top level for all pods, and in the section of one kind of pod."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scripts.chart_types import Annotations, Env, Labels, Object, ObjectName, Objects, Values, a, each


class ProbeTimes(Values):
    """Times of a probe. What it asks stays the chart's."""

    initial_delay_seconds: int | None = Field(None, ge=0)
    """Seconds before the first try."""
    period_seconds: int | None = Field(None, ge=1)
    """Seconds between tries."""
    timeout_seconds: int | None = Field(None, ge=1)
    """Seconds that a try may take."""
    failure_threshold: int | None = Field(None, ge=1)
    """Failed tries in a row that count."""


class Hooks(Values):
    """Hooks of a container."""

    post_start: Annotated[Object, a("core.v1.LifecycleHandler")] = {}
    """After the start."""
    pre_stop: Annotated[Object, a("core.v1.LifecycleHandler")] = {}
    """Before the end; refused for workers, whose hook drains them."""


class Pod(Values):
    """What a pod may have beyond what the chart gives it. Objects have the form that Kubernetes 1.31 knows."""

    pod_annotations: Annotations = {}
    """Annotations of the pods, as they are: no templates, since Vault's and others' have braces of their own."""
    pod_labels: Labels = {}
    """Labels of the pods. Those by which the chart selects are refused."""
    node_selector: Labels = {}
    """Node labels that the pods need, such as a GPU kind or a spot pool."""
    tolerations: Annotated[Objects, each("core.v1.Toleration")] = []
    """Taints that the pods tolerate. For a group with GPUs the taint `nvidia.com/gpu` is added."""
    affinity: Annotated[Object, a("core.v1.Affinity")] = {}
    """Affinity. What `topology.togetherKey` asks for is added."""
    topology_spread_constraints: Annotated[Objects, each("core.v1.TopologySpreadConstraint")] = []
    """Spread constraints; without `labelSelector` they count the pods of the same kind. One with the key of
    `topology.spreadKey` takes its place."""
    priority_class_name: ObjectName = ""
    """PriorityClass. `priorityClasses` and a group's `priorityClass` go before the one of the top level."""
    runtime_class_name: ObjectName = ""
    """RuntimeClass, such as `nvidia`."""
    scheduler_name: str = ""
    """Scheduler, where it is another than Kubernetes' own."""
    host_network: bool | None = None
    """Use the node's network. Ports 8080 and 8081, and the gateways', are then the node's: one such pod per node.
    NetworkPolicies cannot distinguish these pods; see `network.nodeCidrs`."""
    dns_policy: Literal["", "Default", "ClusterFirst", "ClusterFirstWithHostNet", "None"] = ""
    """DNS policy; empty takes Kubernetes' own, and with `hostNetwork` `ClusterFirstWithHostNet`."""
    dns_config: Annotated[Object, a("core.v1.PodDNSConfig")] = {}
    """DNS servers, search domains and options."""
    host_aliases: Annotated[Objects, each("core.v1.HostAlias")] = []
    """Further lines of /etc/hosts."""
    pod_security_context: Annotated[Object, a("core.v1.PodSecurityContext")] = {}
    """Laid over the pods' security context (user 10001, no root, seccomp `RuntimeDefault`), key by key; null removes
    one: `{runAsUser: null, runAsGroup: null, fsGroup: null}` lets OpenShift choose."""
    security_context: Annotated[Object, a("core.v1.SecurityContext")] = {}
    """Laid over the chart's containers' security context (no escalation, read-only root, no capabilities), key by key;
    null removes one."""
    share_process_namespace: bool | None = None
    """Let the containers of a pod see each other's processes."""
    automount_service_account_token: bool | None = None
    """Mount the account's token, for sidecars that need one; empty: the head's alone, which cannot do without."""
    env: Env | None = None
    """Environment of the chart's containers: `{NAME: text}`, `{NAME: {valueFrom: ...}}`, or a list as in a pod."""
    env_from: Annotated[Objects, each("core.v1.EnvFromSource")] = []
    """Secrets and ConfigMaps whose keys become environment; what `env` and the chart set goes first."""
    extra_volumes: Annotated[Objects, each("core.v1.Volume")] = []
    """Further volumes."""
    extra_volume_mounts: Annotated[Objects, each("core.v1.VolumeMount")] = []
    """Where they are in the chart's container; `fetch-model` does not have them."""
    init_containers: Annotated[Objects, each("core.v1.Container")] = []
    """Init containers, before `fetch-model`; with `restartPolicy: Always` sidecars that start first."""
    sidecars: Annotated[Objects, each("core.v1.Container")] = []
    """Further containers, after the chart's."""
    lifecycle: Hooks = Hooks()
    """Hooks of the chart's container, in place of its own."""
    startup_probe: ProbeTimes = ProbeTimes()
    """Times of the startup probe."""
    readiness_probe: ProbeTimes = ProbeTimes()
    """Times of the readiness probe."""
    liveness_probe: ProbeTimes = ProbeTimes()
    """Times of the liveness probe."""
