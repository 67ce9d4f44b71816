{{/* An Ingress. Arguments: root, key (of the values), name (of Service and port). */}}
{{- define "baton.ingress" -}}
{{- $ingress := get .root.Values .key -}}
{{- if $ingress.enabled -}}
{{- if not $ingress.hosts -}}
{{- fail (printf "%s.enabled is true, but %s.hosts is empty; name the hosts that clients call" .key .key) -}}
{{- end -}}
{{- $service := printf "%s-%s" (include "baton.fullname" .root) .name -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "baton.metadata" (dict "root" .root "name" .name "own" "app.kubernetes.io/component: gateway" "labels" $ingress.labels "annotations" $ingress.annotations) | nindent 2 }}
spec:
  {{- with $ingress.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with $ingress.tls }}
  tls:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- $seen := dict }}
    {{- range $ingress.hosts }}
    {{- $host := . }}
    {{- if kindIs "string" . }}
    {{- $host = dict "host" . }}
    {{- end }}
    {{- if hasKey $seen $host.host }}
    {{- fail (printf "%s.hosts names %s twice; give its paths in one entry" $.key (default "any host" $host.host)) }}
    {{- end }}
    {{- $_ := set $seen $host.host true }}
    - http:
        paths:
          {{- range default (list (dict "path" "/")) $host.paths }}
          - path: {{ .path | quote }}
            pathType: {{ default "Prefix" .pathType }}
            backend:
              service:
                name: {{ $service }}
                port:
                  name: {{ $.name }}
          {{- end }}
      {{- with $host.host }}
      host: {{ . | quote }}
      {{- end }}
    {{- end }}
{{- end -}}
{{- end -}}

{{/* A route of the Gateway API. Arguments: root, key (of the values), kind, name (of Service and port). */}}
{{- define "baton.route" -}}
{{- $route := get .root.Values .key -}}
{{- if $route.enabled -}}
{{- if not $route.parentRefs -}}
{{- fail (printf "%s.enabled is true, but %s.parentRefs is empty; name the Gateway that it hangs on" .key .key) -}}
{{- end -}}
{{- $backend := dict "name" (printf "%s-%s" (include "baton.fullname" .root) .name) "port" (int (include "baton.port" (dict "root" .root "key" (printf "%s_port" .name)))) -}}
apiVersion: gateway.networking.k8s.io/v1
kind: {{ .kind }}
metadata:
  {{- include "baton.metadata" (dict "root" .root "name" .name "own" "app.kubernetes.io/component: gateway" "labels" $route.labels "annotations" $route.annotations) | nindent 2 }}
spec:
  parentRefs:
    {{- toYaml $route.parentRefs | nindent 4 }}
  {{- with $route.hostnames }}
  hostnames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- range default (list (dict)) $route.rules }}
    {{- $rule := set (deepCopy .) "backendRefs" (list $backend) }}
    - {{- toYaml $rule | nindent 6 }}
    {{- end }}
{{- end -}}
{{- end -}}
