{{/* Ray resources of a pod of a group. */}}
{{- define "baton.rayResources" -}}
CPU: {{ .numCpus | quote }}
{{- if .gpusPerPod }}
GPU: {{ .gpusPerPod | quote }}
{{- end }}
memory: {{ include "baton.bytes" .memoryGib | quote }}
{{ .role }}: "1"
{{- if .gpu }}
accelerator_type:{{ .gpu }}: "1"
{{- end }}
{{- end -}}

{{/* Ray labels of a pod of a group; arguments: group, revision. */}}
{{- define "baton.rayLabels" -}}
{{- $labels := dict "baton.io/revision" .revision "baton.io/role" .group.role -}}
{{- if .group.rdma.resource -}}
{{- $_ := set $labels "baton.io/rdma" "true" -}}
{{- end -}}
{{- mergeOverwrite $labels .group.rayLabels | toYaml -}}
{{- end -}}

{{/*
The flags of `ray start`, from the same resources, labels and parameters that the RayCluster states, the way KubeRay
writes them. KubeRay's own command is not used (`ray.io/overwrite-container-cmd`): `baton node` starts Ray, answers the
probes and, on the head, runs the controller. Arguments: params, resources, labels (all optional).
*/}}
{{- define "baton.rayFlags" -}}
{{- $flags := list -}}
{{- range $key, $value := .params -}}
{{- if and (eq $value "true") (ne $key "include-dashboard") -}}
{{- $flags = append $flags (printf "--%s" $key) -}}
{{- else -}}
{{- $flags = append $flags (printf "--%s=%s" $key $value) -}}
{{- end -}}
{{- end -}}
{{- $custom := dict -}}
{{- range $key, $value := .resources -}}
{{- if eq $key "CPU" -}}{{- $flags = append $flags (printf "--num-cpus=%s" $value) -}}
{{- else if eq $key "GPU" -}}{{- $flags = append $flags (printf "--num-gpus=%s" $value) -}}
{{- else if eq $key "memory" -}}{{- $flags = append $flags (printf "--memory=%s" $value) -}}
{{- else -}}{{- $_ := set $custom $key (float64 $value) -}}
{{- end -}}
{{- end -}}
{{- if $custom -}}
{{- $flags = append $flags (printf "--resources='%s'" (toJson $custom)) -}}
{{- end -}}
{{- if .labels -}}
{{- $pairs := list -}}
{{- range $key, $value := .labels -}}{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}{{- end -}}
{{- $flags = append $flags (printf "--labels='%s'" (join "," $pairs)) -}}
{{- end -}}
{{- join " " $flags -}}
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
