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

{{/*
Metadata of an object. Arguments: root; name (behind the release's) or full; own and text (its own labels and annotations);
labels and annotations (those of values, besides the ones that all objects have).
*/}}
{{- define "baton.metadata" -}}
{{- $values := .root.Values -}}
{{- range $where, $labels := dict "commonLabels" $values.commonLabels "labels" .labels -}}
{{- include "baton.checkLabels" (dict "labels" $labels "where" $where) -}}
{{- end -}}
name: {{ default (printf "%s-%s" (include "baton.fullname" .root) .name) .full }}
labels:
  {{- include "baton.labels" .root | nindent 2 }}
  {{- with .own }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with merge (dict) (default dict .labels) (default dict $values.commonLabels) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (default dict .annotations) (default dict $values.commonAnnotations) }}
{{- range $key, $_ := default "" .text | fromYaml }}
{{- $annotations = omit $annotations $key }}
{{- end }}
{{- if or .text $annotations }}
annotations:
  {{- with .text }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Labels of pods of one component; arguments: root, component. */}}
{{- define "baton.componentLabels" -}}
{{ include "baton.selectorLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Account of a kind of pods. Arguments: root, component (head, worker, gateway). */}}
{{- define "baton.account" -}}
{{- $account := .root.Values.serviceAccount -}}
{{- $name := get $account (ternary "name" (printf "%sName" .component) (eq .component "head")) -}}
{{- if $name -}}
{{- $name -}}
{{- else if $account.create -}}
{{- include "baton.fullname" .root }}-{{ .component -}}
{{- else if eq .component "head" -}}
{{- fail "serviceAccount.name: give the account's name, or let the chart create it" -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* Secrets for the registry, by name. */}}
{{- define "baton.pullSecrets" -}}
{{- $names := list -}}
{{- range concat (default list (dig "imagePullSecrets" list (default dict .Values.global))) (default list .Values.imagePullSecrets) (default list .Values.image.pullSecrets) -}}
{{- if kindIs "map" . -}}{{- $names = append $names .name -}}{{- else -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- $names | uniq | toYaml -}}
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

{{/* Name of the RayCluster of this release's revision. KubeRay takes it for a DNS label. */}}
{{- define "baton.cluster" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "baton.fullname" .)) -}}
{{- fail (printf "release %s: KubeRay wants names that begin with a letter and have no dots; choose another, or set fullnameOverride" .Release.Name) -}}
{{- end -}}
{{ include "baton.fullname" . }}-{{ .Values.revision }}
{{- end -}}

{{/* Each gateway holds its share of a tenant's limits, by the number that the spec says. */}}
{{- define "baton.checkTenants" -}}
{{- $said := int (dig "gateway" "replicas" 1 .Values.config) -}}
{{- if and .Values.config.tenants (ne $said (int .Values.gateway.replicas)) -}}
{{- fail (printf "gateway.replicas is %d, but config.gateway.replicas is %d: tenants would have %d times their limits" (int .Values.gateway.replicas) $said (div (int .Values.gateway.replicas) $said)) -}}
{{- end -}}
{{- end -}}

{{/* A file that `config.security` names and no Secret brings would stop every process at its start. */}}
{{- define "baton.checkSecrets" -}}
{{- $security := default dict .Values.config.security -}}
{{- range $field, $secret := dict "tls" "tls" "api_keys_file" "apiKeys" "cluster_secret_file" "cluster" "internal_tls" "internalTls" -}}
{{- if and (get $security $field) (not (get $.Values.secrets $secret)) -}}
{{- fail (printf "config.security.%s is set: name the Secret that holds its files in secrets.%s" $field $secret) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "baton.image" -}}
{{- $image := .root.Values.image -}}
{{- $repository := $image.repository -}}
{{- with dig "imageRegistry" "" (default dict .root.Values.global) -}}
{{- $registry := trimSuffix "/" . -}}
{{- if not (hasPrefix (printf "%s/" $registry) $repository) -}}
{{- if regexMatch "^([^/]*[.:][^/]*|localhost)/" $repository -}}
{{- fail (printf "image.repository is %s, and global.imageRegistry is %s; leave the registry out of one of them" $repository $registry) -}}
{{- end -}}
{{- $repository = printf "%s/%s" $registry $repository -}}
{{- end -}}
{{- end -}}
{{- if .digest -}}
{{ $repository }}@{{ .digest }}
{{- else -}}
{{ $repository }}:{{ default (printf "%s-%s" .root.Chart.AppVersion $image.device) .tag }}
{{- end -}}
{{- end -}}

{{/* Name that a caller expects in the gateways' certificate: their gRPC Service's. */}}
{{- define "baton.serverName" -}}
{{- default (printf "%s-grpc.%s.svc" (include "baton.fullname" .) .Release.Namespace) .Values.gateway.serverName -}}
{{- end -}}

{{/* What `helm test` lacks of the credentials that `config.security` asks of callers; empty: nothing. */}}
{{- define "baton.testLacks" -}}
{{- $security := default dict .Values.config.security -}}
{{- $lacks := list -}}
{{- if and (or $security.api_keys_file $security.jwt) (not .Values.helmTest.keySecret) -}}
{{- $lacks = append $lacks "helmTest.keySecret" -}}
{{- end -}}
{{- if and $security.tls (not (or .Values.helmTest.caSecret .Values.secrets.tls)) -}}
{{- $lacks = append $lacks "helmTest.caSecret" -}}
{{- end -}}
{{- if and $security.tls (dig "client_ca_file" "" (default dict $security.tls)) (not .Values.helmTest.clientSecret) -}}
{{- $lacks = append $lacks "helmTest.clientSecret" -}}
{{- end -}}
{{- join " and " $lacks -}}
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
