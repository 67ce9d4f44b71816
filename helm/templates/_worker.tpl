{{/* What is a worker's own in `baton.podSpec`. The same for all groups. */}}
{{- define "baton.worker" -}}
{{- $root := .root -}}
{{- $group := .group -}}
{{- $where := ternary (printf "%sWorkers" $group.name) (printf "extraWorkerGroups %s" $group.name) (eq $group.name $group.role) -}}
{{- $knobs := include "baton.knobs" (dict "root" $root "own" $group "where" $where) | fromJson -}}
{{- $tolerations := list -}}
{{- if $group.gpusPerPod -}}
{{- $tolerations = list (dict "key" (default "nvidia.com/gpu" $group.gpuResource) "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- $capabilities := ternary (list "IPC_LOCK") list (and (not (empty $group.rdma.resource)) $group.rdma.ipcLock) -}}
{{- $claims := include "baton.claims" (dict "root" $root "group" $group "cluster" .revision.cluster) | fromJsonArray -}}
{{- $priority := default $root.Values.priorityClasses.workers (default $group.priorityClassName $group.priorityClass) | default $knobs.priorityClassName -}}
{{- $runtime := default $group.runtimeClassName $group.runtimeClass | default $knobs.runtimeClassName -}}
{{- include "baton.podTemplate" (dict "root" $root "kind" "worker" "where" $where "container" "ray-worker" "image" .revision.image "knobs" $knobs "cluster" .revision.cluster "group" $group "revision" .revision "priority" $priority "runtime" $runtime "capabilities" $capabilities "tolerations" $tolerations "claims" $claims) -}}
{{- end -}}

{{- define "baton.worker.labels" -}}
{{ include "baton.componentLabels" (dict "root" .root "component" "worker") }}
baton.io/cluster: {{ .revision.cluster }}
baton.io/revision: {{ .revision.name | quote }}
baton.io/role: {{ .group.role }}
baton.io/group: {{ .group.name }}
{{- end -}}

{{- define "baton.worker.annotations" -}}{{- end -}}

{{- define "baton.worker.start" -}}
# KubeRay replaces a pod that failed; autoscaler v2 asks for this policy.
restartPolicy: Never
serviceAccountName: {{ include "baton.account" (dict "root" .root "component" "worker") }}
automountServiceAccountToken: {{ default false .knobs.automountServiceAccountToken }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int .group.graceS }}
{{- end -}}

{{/* Workers in one NVLink or rack domain. */}}
{{- define "baton.together" -}}
{{- with .root.Values.topology.togetherKey -}}
podAffinity:
  {{- if $.root.Values.topology.togetherHard }}
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: {{ . }}
      labelSelector:
        matchLabels:
          {{- include "baton.componentLabels" (dict "root" $.root "component" "worker") | nindent 10 }}
          baton.io/cluster: {{ $.cluster }}
  {{- else }}
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: {{ . }}
        labelSelector:
          matchLabels:
            {{- include "baton.componentLabels" (dict "root" $.root "component" "worker") | nindent 12 }}
            baton.io/cluster: {{ $.cluster }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "baton.worker.process" -}}
{{- $resources := include "baton.rayResources" .group | fromYaml -}}
{{- $labels := include "baton.rayLabels" (dict "group" .group "revision" .revision.name) | fromYaml -}}
command: [/bin/bash, -c]
args:
  - >-
    ulimit -n 65536;
    exec baton node --spec /etc/baton/spec/cluster.yaml
    --controller {{ .cluster }}-head-svc:50100
    --probe-host "$POD_IP" --probe-port 8081
    --stall-timeout-s {{ int .root.Values.probes.stallTimeoutS }}
    -- ray start
    --address={{ .cluster }}-head-svc:6379
    --node-ip-address="$POD_IP"
    {{ include "baton.rayFlags" (dict "params" (include "baton.workerParams" .root | fromYaml) "resources" $resources "labels" $labels) }}
{{- end -}}

{{- define "baton.worker.env" -}}
{{ include "baton.rayEnv" .revision }}
{{- end -}}

{{- define "baton.worker.ports" -}}
- {name: probes, containerPort: 8081}
- {name: ray-metrics, containerPort: 8080}
{{- end -}}

{{- define "baton.worker.lifecycle" -}}
preStop:
  exec:
    # Moves what the worker has to others, with its KV; then Ray may end.
    command: [baton, drain, --local, --timeout-s, {{ include "baton.drainTimeout" .root | quote }}]
{{- end -}}

{{- define "baton.worker.startup" -}}
# Loaded, or a free pod. A pod that still loads has the time below; one that hangs fails /livez afterwards.
httpGet: {path: /startupz, port: probes}
periodSeconds: 10
timeoutSeconds: 5
failureThreshold: {{ div (add (int .root.Values.probes.startTimeoutS) 9) 10 }}
{{- end -}}

{{- define "baton.worker.readiness" -}}
# Every pair of the worker has completed its handshake.
httpGet: {path: /readyz, port: probes}
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: 2
{{- end -}}

{{- define "baton.worker.liveness" -}}
# Ray lives, and no engine hangs.
httpGet: {path: /livez, port: probes}
periodSeconds: 10
timeoutSeconds: 5
failureThreshold: 3
{{- end -}}

{{- define "baton.worker.resources" -}}
{{- $group := .group -}}
{{- range $index, $kind := list "requests" "limits" -}}
{{- if $index }}
{{ end -}}
{{ $kind }}:
  cpu: {{ include "baton.milli" $group.cpus }}
  memory: {{ include "baton.mib" $group.memoryGib }}
  ephemeral-storage: {{ include "baton.mib" $group.ephemeralStorageGib }}
  {{- if and $group.gpusPerPod $group.gpuResource }}
  {{ $group.gpuResource }}: {{ $group.gpusPerPod }}
  {{- end }}
  {{- if $group.rdma.resource }}
  {{ $group.rdma.resource }}: {{ int $group.rdma.devices }}
  {{- end }}
  {{- if $group.rdma.hugepages2MiGib }}
  hugepages-2Mi: {{ include "baton.mib" $group.rdma.hugepages2MiGib }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "baton.worker.mounts" -}}
{{ include "baton.mounts" .root }}
- name: shared-memory
  mountPath: /dev/shm
{{- if .group.rdma.hugepages2MiGib }}
- name: hugepages
  mountPath: /dev/hugepages
{{- end }}
{{- end -}}

{{- define "baton.worker.volumes" -}}
{{ include "baton.volumes" (dict "root" .root "diskGib" .group.ephemeralStorageGib) }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ include "baton.mib" .group.sharedMemoryGib }}
{{- if .group.rdma.hugepages2MiGib }}
- name: hugepages
  emptyDir:
    medium: HugePages-2Mi
{{- end }}
{{- end -}}
