{{/* Parts that all pods share. */}}
{{- define "baton.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "baton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Files that every Baton container reads or writes. */}}
{{- define "baton.mounts" -}}
- name: spec
  mountPath: /etc/baton/spec
  readOnly: true
- name: model
  mountPath: {{ .Values.model.mountPath }}
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .Values.secrets.cluster }}
- name: cluster-secret
  mountPath: /etc/baton/cluster
  readOnly: true
{{- end }}
{{- with .Values.secrets.internalTls }}
- name: internal-tls
  mountPath: /etc/baton/internal-tls
  readOnly: true
{{- end }}
{{- end -}}

{{/* Arguments: root, diskGib. */}}
{{- define "baton.volumes" -}}
{{- $model := .root.Values.model -}}
- name: spec
  configMap:
    name: {{ include "baton.fullname" .root }}
- name: tmp
  emptyDir:
    sizeLimit: {{ include "baton.mib" .diskGib }}
{{- with .root.Values.secrets.cluster }}
- name: cluster-secret
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.secrets.internalTls }}
- name: internal-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
- name: model
{{- if eq $model.kind "pvc" }}
  persistentVolumeClaim:
    claimName: {{ required "model.claim: name the PersistentVolumeClaim that holds the weights, or choose another model.kind" $model.claim }}
    {{- if not $model.fetch.image }}
    readOnly: true
    {{- end }}
{{- else if eq $model.kind "hostPath" }}
  hostPath:
    path: {{ required "model.hostPath: name the folder on the nodes" $model.hostPath }}
    type: Directory
{{- else if eq $model.kind "image" }}
  image:
    reference: {{ required "model.image: name the OCI artifact" $model.image }}
    pullPolicy: IfNotPresent
{{- else }}
  {{- if not $model.fetch.image }}
  {{- fail "model.kind emptyDir is empty without model.fetch.image, which fills it" }}
  {{- end }}
  emptyDir:
    sizeLimit: {{ include "baton.mib" $model.sizeGib }}
{{- end }}
{{- end -}}

{{- define "baton.fetch" -}}
{{- with .Values.model.fetch }}
{{- if .image }}
initContainers:
  - name: fetch-model
    image: {{ .image }}
    imagePullPolicy: IfNotPresent
    command: {{ toJson .command }}
    {{- with .envFromSecret }}
    envFrom:
      - secretRef:
          name: {{ . }}
    {{- end }}
    env:
      - name: HOME
        value: /tmp
    resources:
      requests: {cpu: 500m, memory: 512Mi, ephemeral-storage: 1Gi}
      limits: {cpu: "4", memory: 4Gi, ephemeral-storage: 1Gi}
    securityContext:
      {{- include "baton.containerSecurity" $ | nindent 6 }}
    volumeMounts:
      - name: model
        mountPath: {{ $.Values.model.mountPath }}
      - name: tmp
        mountPath: /tmp
{{- end }}
{{- end }}
{{- end -}}

{{/* Environment of Ray containers. POD_IP is Ray's node address and where Baton's services listen. */}}
{{- define "baton.rayEnv" -}}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: BATON_RAY_CLUSTER
  value: {{ .cluster }}
- name: BATON_CONTROLLER
  value: {{ .cluster }}-head-svc:50100
- name: BATON_CACHE
  value: /tmp/baton
- name: HOME
  value: /tmp
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
# The security section, for `baton drain` in this pod.
- name: BATON_SPEC
  value: /etc/baton/spec/cluster.yaml
# Ray starts workers at niceness 15; engines are the point of the machine.
- name: RAY_worker_niceness
  value: "0"
{{- end -}}

{{/* Where pods go. Arguments: root, component, cluster, group (optional). */}}
{{- define "baton.spread" -}}
{{- with .root.Values.topology }}
{{- if .spreadKey }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .spreadKey }}
    whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" .spreadHard }}
    labelSelector:
      matchLabels:
        {{- include "baton.componentLabels" (dict "root" $.root "component" $.component) | nindent 8 }}
        {{- with $.cluster }}
        baton.io/cluster: {{ . }}
        {{- end }}
        {{- with $.group }}
        baton.io/group: {{ . }}
        {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The pod of a worker group: the one template for all of them. Arguments: root, group, revision. */}}
{{- define "baton.workerPod" -}}
{{- $root := .root -}}
{{- $group := .group -}}
{{- $revision := .revision -}}
{{- $resources := include "baton.rayResources" $group | fromYaml -}}
{{- $labels := include "baton.rayLabels" (dict "group" $group "revision" $revision.name) | fromYaml -}}
metadata:
  labels:
    {{- include "baton.componentLabels" (dict "root" $root "component" "worker") | nindent 4 }}
    baton.io/cluster: {{ $revision.cluster }}
    baton.io/revision: {{ $revision.name | quote }}
    baton.io/role: {{ $group.role }}
    baton.io/group: {{ $group.name }}
spec:
  # KubeRay replaces a pod that failed; autoscaler v2 asks for this policy.
  restartPolicy: Never
  serviceAccountName: {{ include "baton.fullname" $root }}-worker
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int $root.Values.drain.graceS }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with default $root.Values.priorityClasses.workers $group.priorityClass }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $group.runtimeClass }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $group.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := $group.tolerations }}
  {{- if $group.gpusPerPod }}
  {{- $tolerations = append $tolerations (dict "key" $group.gpuResource "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.topology.togetherKey }}
  affinity:
    podAffinity:
      {{- if $root.Values.topology.togetherHard }}
      requiredDuringSchedulingIgnoredDuringExecution:
        - topologyKey: {{ . }}
          labelSelector:
            matchLabels:
              {{- include "baton.componentLabels" (dict "root" $root "component" "worker") | nindent 14 }}
              baton.io/cluster: {{ $revision.cluster }}
      {{- else }}
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: {{ . }}
            labelSelector:
              matchLabels:
                {{- include "baton.componentLabels" (dict "root" $root "component" "worker") | nindent 16 }}
                baton.io/cluster: {{ $revision.cluster }}
      {{- end }}
  {{- end }}
  {{- include "baton.spread" (dict "root" $root "component" "worker" "cluster" $revision.cluster "group" $group.name) | nindent 2 }}
  securityContext:
    {{- include "baton.podSecurity" $root | nindent 4 }}
  {{- include "baton.fetch" $root | nindent 2 }}
  containers:
    - name: ray-worker
      image: {{ $revision.image }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [/bin/bash, -c]
      args:
        - >-
          ulimit -n 65536;
          exec baton node --spec /etc/baton/spec/cluster.yaml
          --controller {{ $revision.cluster }}-head-svc:50100
          --probe-host "$POD_IP" --probe-port 8081
          --stall-timeout-s {{ int $root.Values.probes.stallTimeoutS }}
          -- ray start
          --address={{ $revision.cluster }}-head-svc:6379
          --node-ip-address="$POD_IP"
          {{ include "baton.rayFlags" (dict "params" (include "baton.workerParams" $root | fromYaml) "resources" $resources "labels" $labels) }}
      env:
        {{- include "baton.rayEnv" $revision | nindent 8 }}
        {{- range $name, $value := $group.env }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      ports:
        - {name: probes, containerPort: 8081}
        - {name: ray-metrics, containerPort: 8080}
      lifecycle:
        preStop:
          exec:
            # Moves what the worker has to others, with its KV; then Ray may end.
            command: [baton, drain, --local, --timeout-s, {{ include "baton.drainTimeout" $root | quote }}]
      startupProbe:
        # Loaded, or a free pod. A pod that still loads has the time below; one that hangs fails /livez afterwards.
        httpGet: {path: /startupz, port: probes}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ div (add (int $root.Values.probes.startTimeoutS) 9) 10 }}
      readinessProbe:
        # Every pair of the worker has shaken hands.
        httpGet: {path: /readyz, port: probes}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      livenessProbe:
        # Ray lives, and no engine hangs.
        httpGet: {path: /livez, port: probes}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      resources:
        {{- range $kind := list "requests" "limits" }}
        {{ $kind }}:
          cpu: {{ include "baton.milli" $group.cpus }}
          memory: {{ include "baton.mib" $group.memoryGib }}
          ephemeral-storage: {{ include "baton.mib" $group.ephemeralStorageGib }}
          {{- if $group.gpusPerPod }}
          {{ $group.gpuResource }}: {{ $group.gpusPerPod }}
          {{- end }}
          {{- if $group.rdma.resource }}
          {{ $group.rdma.resource }}: {{ int $group.rdma.devices }}
          {{- end }}
          {{- if $group.rdma.hugepages2MiGib }}
          hugepages-2Mi: {{ include "baton.mib" $group.rdma.hugepages2MiGib }}
          {{- end }}
        {{- end }}
      securityContext:
        {{- include "baton.containerSecurity" $root | nindent 8 }}
          {{- if and $group.rdma.resource $group.rdma.ipcLock }}
          add: [IPC_LOCK]
          {{- end }}
      volumeMounts:
        {{- include "baton.mounts" $root | nindent 8 }}
        - name: shared-memory
          mountPath: /dev/shm
        {{- if $group.rdma.hugepages2MiGib }}
        - name: hugepages
          mountPath: /dev/hugepages
        {{- end }}
  volumes:
    {{- include "baton.volumes" (dict "root" $root "diskGib" $group.ephemeralStorageGib) | nindent 4 }}
    - name: shared-memory
      emptyDir:
        medium: Memory
        sizeLimit: {{ include "baton.mib" $group.sharedMemoryGib }}
    {{- if $group.rdma.hugepages2MiGib }}
    - name: hugepages
      emptyDir:
        medium: HugePages-2Mi
    {{- end }}
{{- end -}}

{{- define "baton.workerParams" -}}
block: "true"
disable-usage-stats: "true"
metrics-export-port: "8080"
object-store-memory: "83886080"
{{- end -}}

{{- define "baton.headParams" -}}
block: "true"
dashboard-host: 0.0.0.0
disable-usage-stats: "true"
include-dashboard: {{ printf "%t" .Values.head.dashboard | quote }}
metrics-export-port: "8080"
{{- if .Values.autoscaling.enabled }}
no-monitor: "true"
{{- end }}
object-store-memory: "83886080"
port: "6379"
{{- end -}}
