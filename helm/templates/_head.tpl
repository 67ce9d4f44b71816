{{/* What is the head's own in `baton.podSpec`. Arguments: root, revision. */}}
{{- define "baton.head" -}}
{{- $root := .root -}}
{{- $knobs := include "baton.knobs" (dict "root" $root "own" $root.Values.head "where" "head") | fromJson -}}
{{- $priority := default $root.Values.priorityClasses.head $root.Values.head.priorityClassName | default $knobs.priorityClassName -}}
{{- include "baton.podTemplate" (dict "root" $root "kind" "head" "where" "head" "container" "ray-head" "image" .revision.image "knobs" $knobs "cluster" .revision.cluster "revision" .revision "priority" $priority "runtime" $knobs.runtimeClassName) -}}
{{- end -}}

{{- define "baton.head.labels" -}}
{{ include "baton.componentLabels" (dict "root" .root "component" "head") }}
baton.io/cluster: {{ .revision.cluster }}
baton.io/revision: {{ .revision.name | quote }}
{{- end -}}

{{- define "baton.head.annotations" -}}{{- end -}}

{{- define "baton.head.start" -}}
{{- if and (kindIs "bool" .knobs.automountServiceAccountToken) (not .knobs.automountServiceAccountToken) -}}
{{- fail "automountServiceAccountToken is false for the head, whose Lease and autoscaler speak with the API server; set it in gateway or a worker group alone" -}}
{{- end -}}
restartPolicy: Never
serviceAccountName: {{ include "baton.account" (dict "root" .root "component" "head") }}
# The autoscaler and the controller's lease speak with the API server.
automountServiceAccountToken: true
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int .root.Values.head.terminationGracePeriodSeconds }}
{{- end -}}

{{- define "baton.headResources" -}}
CPU: "0"
memory: {{ include "baton.bytes" .Values.head.memoryGib | quote }}
{{- end -}}

{{- define "baton.headLabels" -}}
baton.io/revision: {{ .name | quote }}
baton.io/role: head
{{- end -}}

{{- define "baton.head.process" -}}
{{- $root := .root -}}
command: [/bin/bash, -c]
args:
  - >-
    ulimit -n 65536;
    exec baton node --head --lease
    {{- if $root.Values.autoscaling.enabled }} --remove-drained-pods{{ end }}
    {{- if $root.Values.topology.readNodeLabels }} --node-labels
    {{- with $root.Values.topology.togetherKey }} --domain-label {{ . }}{{ end }}
    {{- end }} --spec /etc/baton/spec/cluster.yaml
    --controller "$POD_IP":50100
    --placement-timeout-s {{ int $root.Values.head.placementTimeoutS }}
    --probe-host "$POD_IP" --probe-port 8081
    -- ray start --head
    --node-ip-address="$POD_IP"
    {{ include "baton.rayFlags" (dict "params" (include "baton.headParams" $root | fromYaml) "resources" (include "baton.headResources" $root | fromYaml) "labels" (include "baton.headLabels" .revision | fromYaml)) }}
{{- end -}}

{{- define "baton.head.env" -}}
{{ include "baton.rayEnv" .revision }}
{{- end -}}

{{- define "baton.head.ports" -}}
- {name: gcs-server, containerPort: 6379}
{{- if .root.Values.head.dashboard }}
- {name: dashboard, containerPort: 8265}
{{- end }}
- {name: registry, containerPort: 50100}
- {name: probes, containerPort: 8081}
- {name: metrics, containerPort: 8080}
{{- end -}}

{{- define "baton.head.lifecycle" -}}{{- end -}}

{{- define "baton.head.startup" -}}
httpGet: {path: /startupz, port: probes}
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: 60
{{- end -}}

{{- define "baton.head.readiness" -}}
# Ray and the registry answer: workers may join. Whether the cluster serves, the gateways' readiness says.
httpGet: {path: /readyz, port: probes}
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: 3
{{- end -}}

{{- define "baton.head.liveness" -}}
httpGet: {path: /livez, port: probes}
periodSeconds: 10
timeoutSeconds: 5
failureThreshold: 3
{{- end -}}

{{- define "baton.head.resources" -}}
{{ include "baton.plainResources" .root.Values.head }}
{{- end -}}

{{- define "baton.head.mounts" -}}
{{ include "baton.mounts" .root }}
- name: shared-memory
  mountPath: /dev/shm
{{- end -}}

{{- define "baton.head.volumes" -}}
{{ include "baton.volumes" (dict "root" .root "diskGib" .root.Values.head.ephemeralStorageGib) }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: 256Mi
{{- end -}}
