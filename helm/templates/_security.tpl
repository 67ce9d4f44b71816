{{/* Text of the chart, with the keys of values laid over it; null removes one. Arguments: own, given. */}}
{{- define "baton.laidOver" -}}
{{- if .given -}}
{{- $sum := default dict (.own | fromYaml) -}}
{{- range $key, $value := .given -}}
{{- if kindIs "invalid" $value -}}{{- $sum = omit $sum $key -}}{{- else -}}{{- $_ := set $sum $key $value -}}{{- end -}}
{{- end -}}
{{- if $sum -}}{{- toYaml $sum -}}{{- end -}}
{{- else -}}
{{- .own -}}
{{- end -}}
{{- end -}}

{{/* Security context of a pod; argument: knobs. */}}
{{- define "baton.podSecurity" -}}
{{- $own := include "baton.podSecurityOwn" . -}}
{{- include "baton.laidOver" (dict "own" $own "given" .podSecurityContext) | default "{}" -}}
{{- end -}}

{{- define "baton.podSecurityOwn" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security context of the chart's containers. Arguments: knobs, add (capabilities that they need). */}}
{{- define "baton.containerSecurity" -}}
{{- $given := default dict .knobs.securityContext -}}
{{- if $given.capabilities -}}
{{- $wanted := $given.capabilities -}}
{{- $all := dict "drop" (ternary $wanted.drop (list "ALL") (hasKey $wanted "drop")) -}}
{{- with concat (default list .add) (default list $wanted.add) | uniq -}}{{- $_ := set $all "add" . -}}{{- end -}}
{{- $given = set (deepCopy $given) "capabilities" $all -}}
{{- end -}}
{{- include "baton.laidOver" (dict "own" (include "baton.containerSecurityOwn" .) "given" $given) | default "{}" -}}
{{- end -}}

{{- define "baton.containerSecurityOwn" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities:
  drop: [ALL]
  {{- with .add }}
  add: [{{ join ", " . }}]
  {{- end }}
{{- end -}}

{{/* Contexts that the API server or the kubelet would refuse later, when KubeRay makes the pods. */}}
{{- define "baton.checkSecurity" -}}
{{- $pod := include "baton.podSecurity" .knobs | fromYaml -}}
{{- $own := include "baton.containerSecurity" (dict "knobs" .knobs "add" .capabilities) | fromYaml -}}
{{- $user := ternary $own.runAsUser $pod.runAsUser (hasKey $own "runAsUser") -}}
{{- $nonRoot := ternary $own.runAsNonRoot $pod.runAsNonRoot (hasKey $own "runAsNonRoot") -}}
{{- if and (not (kindIs "invalid" $user)) (eq (int $user) 0) $nonRoot -}}
{{- fail (printf "%s: runAsUser 0 is root, and runAsNonRoot is true; set it to false in podSecurityContext and securityContext, or take another user" .where) -}}
{{- end -}}
{{- if and (hasKey $own "allowPrivilegeEscalation") (not $own.allowPrivilegeEscalation) -}}
{{- if $own.privileged -}}
{{- fail (printf "%s.securityContext: privileged needs allowPrivilegeEscalation, too: set it to true" .where) -}}
{{- end -}}
{{- range dig "capabilities" "add" list $own -}}
{{- if has . (list "SYS_ADMIN" "CAP_SYS_ADMIN") -}}
{{- fail (printf "%s.securityContext: the capability %s needs allowPrivilegeEscalation, too: set it to true" $.where .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
