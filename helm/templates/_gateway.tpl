{{/* What is the gateways' own in `baton.podSpec`. */}}
{{- define "baton.gateway" -}}
{{- $root := . -}}
{{- $knobs := include "baton.knobs" (dict "root" $root "own" $root.Values.gateway "where" "gateway") | fromJson -}}
{{- $priority := default $root.Values.priorityClasses.gateway $root.Values.gateway.priorityClassName | default $knobs.priorityClassName -}}
{{- $revision := first (include "baton.revisions" $root | fromYamlArray) -}}
{{- include "baton.podTemplate" (dict "root" $root "kind" "gateway" "where" "gateway" "container" "gateway" "image" $revision.image "knobs" $knobs "revision" $revision "priority" $priority "runtime" $knobs.runtimeClassName) -}}
{{- end -}}

{{- define "baton.gateway.labels" -}}
{{ include "baton.componentLabels" (dict "root" .root "component" "gateway") }}
baton.io/cluster: {{ include "baton.cluster" .root }}
baton.io/revision: {{ .root.Values.revision | quote }}
{{- end -}}

{{- define "baton.gateway.annotations" -}}
checksum/spec: {{ .root.Values.config | toJson | sha256sum }}
# What `baton status --release` asks the certificate for, since it calls a forwarded port.
baton.io/server-name: {{ include "baton.serverName" .root }}
{{- end -}}

{{- define "baton.gateway.start" -}}
serviceAccountName: {{ include "baton.account" (dict "root" .root "component" "gateway") }}
automountServiceAccountToken: {{ default false .knobs.automountServiceAccountToken }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add (int .root.Values.gateway.graceS) 10 }}
{{- end -}}

{{- define "baton.gateway.process" -}}
command: [/bin/bash, -c]
args:
  - >-
    exec baton gateway --spec /etc/baton/spec/cluster.yaml
    --controller {{ include "baton.cluster" .root }}-head-svc:50100
    --host {{ include "baton.gatewayHost" .root }} --probe-port 8081
    --grace-s {{ int .root.Values.gateway.graceS }}
{{- end -}}

{{/* Both families listen where a Service may ask for IPv6. */}}
{{- define "baton.gatewayHost" -}}
{{- ternary "::" "0.0.0.0" (or (has "IPv6" (default list .Values.gateway.ipFamilies)) (has .Values.gateway.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack"))) -}}
{{- end -}}

{{- define "baton.gateway.env" -}}
- name: BATON_CACHE
  value: /tmp/baton
- name: HOME
  value: /tmp
{{- end -}}

{{- define "baton.gateway.ports" -}}
- {name: grpc, containerPort: {{ include "baton.port" (dict "root" .root "key" "grpc_port") }}}
- {name: http, containerPort: {{ include "baton.port" (dict "root" .root "key" "http_port") }}}
- {name: metrics, containerPort: {{ include "baton.port" (dict "root" .root "key" "metrics_port") }}}
- {name: probes, containerPort: 8081}
{{- end -}}

{{- define "baton.gateway.lifecycle" -}}
preStop:
  exec:
    # Clients are sent elsewhere before this gateway stops listening.
    command: [sleep, "5"]
{{- end -}}

{{- define "baton.gateway.startup" -}}
httpGet: {path: /startupz, port: probes}
periodSeconds: 2
timeoutSeconds: 5
failureThreshold: 150
{{- end -}}

{{- define "baton.gateway.readiness" -}}
# It knows workers that can serve a request, all of them paired.
httpGet: {path: /readyz, port: probes}
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: 2
{{- end -}}

{{- define "baton.gateway.liveness" -}}
httpGet: {path: /livez, port: probes}
periodSeconds: 10
timeoutSeconds: 5
failureThreshold: 3
{{- end -}}

{{- define "baton.gateway.resources" -}}
{{ include "baton.plainResources" .root.Values.gateway }}
{{- end -}}

{{- define "baton.gateway.mounts" -}}
{{ include "baton.mounts" .root }}
{{- if .root.Values.secrets.apiKeys }}
- name: api-keys
  mountPath: /etc/baton/keys
  readOnly: true
{{- end }}
{{- if .root.Values.secrets.tls }}
- name: tls
  mountPath: /etc/baton/tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "baton.gateway.volumes" -}}
{{ include "baton.volumes" (dict "root" .root "diskGib" .root.Values.gateway.ephemeralStorageGib) }}
{{- with .root.Values.secrets.apiKeys }}
- name: api-keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.secrets.tls }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Requests and limits of head or gateway. */}}
{{- define "baton.plainResources" -}}
{{- $own := . -}}
{{- range $index, $kind := list "requests" "limits" -}}
{{- if $index }}
{{ end -}}
{{ $kind }}:
  cpu: {{ include "baton.milli" $own.cpus }}
  memory: {{ include "baton.mib" $own.memoryGib }}
  ephemeral-storage: {{ include "baton.mib" $own.ephemeralStorageGib }}
{{- end -}}
{{- end -}}

{{/* The gRPC or the HTTP Service. Arguments: root, name (of the port), plain and secure (its protocol). */}}
{{- define "baton.gatewayService" -}}
{{- $gateway := .root.Values.gateway -}}
{{- include "baton.checkService" .root -}}
{{- $annotations := merge (dict) (default dict (get $gateway (printf "%sServiceAnnotations" .name))) (default dict $gateway.serviceAnnotations) -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "baton.metadata" (dict "root" .root "name" .name "own" "app.kubernetes.io/component: gateway" "labels" $gateway.serviceLabels "annotations" $annotations) | nindent 2 }}
spec:
  type: {{ $gateway.serviceType }}
  {{- include "baton.ipFamilies" .root }}
  {{- with $gateway.externalTrafficPolicy }}
  externalTrafficPolicy: {{ . }}
  {{- end }}
  {{- with $gateway.internalTrafficPolicy }}
  internalTrafficPolicy: {{ . }}
  {{- end }}
  {{- with $gateway.sessionAffinity }}
  sessionAffinity: {{ . }}
  {{- end }}
  {{- with $gateway.externalIPs }}
  externalIPs:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $gateway.loadBalancerClass }}
  loadBalancerClass: {{ . }}
  {{- end }}
  {{- with $gateway.loadBalancerIP }}
  loadBalancerIP: {{ . }}
  {{- end }}
  {{- with $gateway.loadBalancerSourceRanges }}
  loadBalancerSourceRanges:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if kindIs "bool" $gateway.allocateLoadBalancerNodePorts }}
  allocateLoadBalancerNodePorts: {{ $gateway.allocateLoadBalancerNodePorts }}
  {{- end }}
  selector:
    {{- include "baton.componentLabels" (dict "root" .root "component" "gateway") | nindent 4 }}
  ports:
    - name: {{ .name }}
      port: {{ include "baton.port" (dict "root" .root "key" (printf "%s_port" .name)) }}
      targetPort: {{ .name }}
      {{- with get (default dict $gateway.nodePorts) .name }}
      nodePort: {{ int . }}
      {{- end }}
      appProtocol: {{ ternary .secure .plain (not (empty (dig "security" "tls" dict .root.Values.config))) }}
{{- end -}}

{{- define "baton.ipFamilies" -}}
{{- with .Values.gateway.ipFamilyPolicy }}
  ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.gateway.ipFamilies }}
  ipFamilies:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* What the API server refuses of a Service. */}}
{{- define "baton.checkService" -}}
{{- $gateway := .Values.gateway -}}
{{- $type := $gateway.serviceType -}}
{{- if ne $type "LoadBalancer" -}}
{{- range $key := list "loadBalancerClass" "loadBalancerIP" "loadBalancerSourceRanges" "allocateLoadBalancerNodePorts" -}}
{{- $value := get $gateway $key -}}
{{- if or $value (kindIs "bool" $value) -}}
{{- fail (printf "gateway.%s is of load balancers, but gateway.serviceType is %s; set that to LoadBalancer" $key $type) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $type "ClusterIP" -}}
{{- if and $gateway.externalTrafficPolicy (not $gateway.externalIPs) -}}
{{- fail "gateway.externalTrafficPolicy is of Services that are reached from outside, but gateway.serviceType is ClusterIP; choose NodePort or LoadBalancer" -}}
{{- end -}}
{{- range $name, $port := $gateway.nodePorts -}}
{{- if $port -}}
{{- fail (printf "gateway.nodePorts.%s is given, but gateway.serviceType is ClusterIP; choose NodePort or LoadBalancer" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $gateway.nodePorts -}}
{{- if and .grpc (eq (int (default 0 .grpc)) (int (default 0 .http))) -}}
{{- fail (printf "gateway.nodePorts: %d is given to gRPC and HTTP; each needs a port of its own" (int .grpc)) -}}
{{- end -}}
{{- end -}}
{{- $ports := dict "8081" "probes" -}}
{{- range list "grpc_port" "http_port" "metrics_port" -}}
{{- $port := include "baton.port" (dict "root" $ "key" .) -}}
{{- if hasKey $ports $port -}}
{{- fail (printf "config.gateway.%s is %s, which is the port of %s; give it another" . $port (get $ports $port)) -}}
{{- end -}}
{{- $_ := set $ports $port . -}}
{{- end -}}
{{- $families := default list $gateway.ipFamilies -}}
{{- if ne (len (uniq $families)) (len $families) -}}
{{- fail "gateway.ipFamilies names a family twice" -}}
{{- end -}}
{{- if and (gt (len $families) 1) (not (has $gateway.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack"))) -}}
{{- fail "gateway.ipFamilies names two families; set gateway.ipFamilyPolicy to PreferDualStack or RequireDualStack" -}}
{{- end -}}
{{- end -}}
