{{/* Spread of a kind of pods, and what values add to it. */}}
{{- define "baton.spread" -}}
{{- $given := .knobs.topologySpreadConstraints -}}
{{- $key := ternary .root.Values.topology.spreadKey "" (has .kind (list "worker" "gateway")) -}}
{{- range $given -}}
{{- if eq .topologyKey $key -}}{{- $key = "" -}}{{- end -}}
{{- end -}}
{{- $labels := include "baton.componentLabels" (dict "root" .root "component" .kind) -}}
{{- $same := "" -}}
{{- with .cluster -}}{{- $same = printf "baton.io/cluster: %s" . -}}{{- end -}}
{{- with .group -}}{{- $same = printf "%s\nbaton.io/group: %s" $same .name -}}{{- end -}}
{{- if or $key $given }}
topologySpreadConstraints:
  {{- with $key }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" $.root.Values.topology.spreadHard }}
    labelSelector:
      matchLabels:
        {{- $labels | nindent 8 }}
        {{- with $same }}
        {{- . | nindent 8 }}
        {{- end }}
  {{- end }}
  {{- range $given }}
  {{- $selector := dict "matchLabels" (printf "%s\n%s" $labels $same | fromYaml) }}
  - {{- toYaml (merge (deepCopy .) (dict "labelSelector" $selector)) | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* What values ask for, and for workers what keeps them in one domain. */}}
{{- define "baton.affinity" -}}
{{- $own := "" -}}
{{- if eq .kind "worker" -}}{{- $own = include "baton.together" . -}}{{- end -}}
{{- if not .knobs.affinity -}}
{{- $own -}}
{{- else -}}
{{- $sum := deepCopy .knobs.affinity -}}
{{- range $kind, $term := dig "podAffinity" dict ($own | fromYaml) -}}
{{- $pods := default dict $sum.podAffinity -}}
{{- $_ := set $sum "podAffinity" (set $pods $kind (concat (default list (get $pods $kind)) $term)) -}}
{{- end -}}
{{- toYaml $sum -}}
{{- end -}}
{{- end -}}

{{- define "baton.podNetwork" -}}
{{- $knobs := .knobs -}}
{{- $policy := $knobs.dnsPolicy -}}
{{- if $knobs.hostNetwork -}}
{{- $policy = default "ClusterFirstWithHostNet" $policy }}
hostNetwork: true
{{- end }}
{{- with $policy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with $knobs.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $knobs.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
