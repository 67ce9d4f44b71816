{{/* Names and labels. 35 + 1 + 12 characters: KubeRay cuts RayCluster names at 50 when it names the head's Service. */}}
{{- define "baton.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 35 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 35 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 35 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "baton.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "baton.labels" -}}
{{ include "baton.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of pods of one component; arguments: root, component. */}}
{{- define "baton.componentLabels" -}}
{{ include "baton.selectorLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "baton.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ include "baton.fullname" . }}-head{{- else -}}
{{ required "serviceAccount.name: give the account's name, or let the chart create it" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* The revisions that run: the one of this release, and during an upgrade the one before. */}}
{{- define "baton.revisions" -}}
- name: {{ .Values.revision | quote }}
  cluster: {{ include "baton.fullname" . }}-{{ .Values.revision }}
  image: {{ include "baton.image" (dict "root" . "tag" .Values.image.tag "digest" .Values.image.digest) }}
{{- with .Values.previous }}
{{- if .revision }}
{{- if eq .revision $.Values.revision }}
{{- fail "previous.revision equals revision: give the new engine a revision of its own, or leave previous out" }}
{{- end }}
- name: {{ .revision | quote }}
  cluster: {{ include "baton.fullname" $ }}-{{ .revision }}
  image: {{ include "baton.image" (dict "root" $ "tag" .tag "digest" .digest) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Name of the RayCluster of this release's revision. */}}
{{- define "baton.cluster" -}}
{{ include "baton.fullname" . }}-{{ .Values.revision }}
{{- end -}}

{{- define "baton.image" -}}
{{- $image := .root.Values.image -}}
{{- if .digest -}}
{{ $image.repository }}@{{ .digest }}
{{- else -}}
{{ $image.repository }}:{{ default (printf "%s-%s" .root.Chart.AppVersion $image.device) .tag }}
{{- end -}}
{{- end -}}

{{- define "baton.drainTimeout" -}}
{{- dig "drain" "timeout_s" 60 .Values.config -}}
{{- end -}}

{{- define "baton.port" -}}
{{- $defaults := dict "grpc_port" 50051 "http_port" 8000 "metrics_port" 9090 -}}
{{- $port := int (dig "gateway" .key (get $defaults .key) .root.Values.config) -}}
{{- if not $port -}}
{{- fail (printf "config.gateway.%s: 0 takes a free port, which no Service can name; give it a number" .key) -}}
{{- end -}}
{{- $port -}}
{{- end -}}

{{- define "baton.bytes" -}}
{{- printf "%d" (int64 (mulf (float64 .) 1073741824)) -}}
{{- end -}}

{{- define "baton.mib" -}}
{{- printf "%dMi" (int64 (mulf (float64 .) 1024)) -}}
{{- end -}}

{{- define "baton.milli" -}}
{{- printf "%dm" (int64 (mulf (float64 .) 1000)) -}}
{{- end -}}

{{/* Annotation with the runbook of an alert. */}}
{{- define "baton.runbook" -}}
{{- with .alerts.runbookUrl -}}
runbook_url: {{ . }}#{{ $.name }}
{{- end -}}
{{- end -}}
