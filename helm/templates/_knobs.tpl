{{/*
The keys of all pods (scripts/chart_pod.py) for one kind of pod, as JSON: those of the top level, and its section's over
them. Arguments: root, own (its section), where (the section's name), alone (no containers and mounts of the top level).
*/}}
{{- define "baton.knobs" -}}
{{- $all := .root.Values -}}
{{- if .alone -}}
{{- $all = omit $all "initContainers" "sidecars" "extraVolumes" "extraVolumeMounts" "lifecycle" "startupProbe" "readinessProbe" "livenessProbe" "hostNetwork" -}}
{{- end -}}
{{- $own := .own -}}
{{- $where := .where -}}
{{- range $place, $part := dict "the top level" $all $where $own -}}
{{- include "baton.checkLabels" (dict "labels" $part.podLabels "where" (printf "podLabels of %s" $place)) -}}
{{- range $key, $_ := default dict $part.podAnnotations -}}
{{- if regexMatch "^(checksum/spec$|baton\\.io/|helm\\.sh/)" $key -}}
{{- fail (printf "podAnnotations of %s: %s is set by the chart; leave it out" $place $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $knobs := dict -}}
{{- range $key := list "podAnnotations" "podLabels" "nodeSelector" "podSecurityContext" "securityContext" "lifecycle" "startupProbe" "readinessProbe" "livenessProbe" -}}
{{- $sum := dict -}}
{{- range $part := list (get $all $key) (get $own $key) -}}
{{- range $name, $value := default dict $part -}}
{{- if or (hasSuffix "Context" $key) (not (empty $value)) (kindIs "string" $value) (kindIs "float64" $value) -}}{{- $_ := set $sum $name $value -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $knobs $key $sum -}}
{{- end -}}
{{- range $key := list "tolerations" "topologySpreadConstraints" "envFrom" "hostAliases" -}}
{{- $_ := set $knobs $key (concat (default list (get $all $key)) (default list (get $own $key)) | default list) -}}
{{- end -}}
{{- range $key, $by := dict "extraVolumes" "name" "extraVolumeMounts" "mountPath" "initContainers" "name" "sidecars" "name" -}}
{{- $_ := set $knobs $key (include "baton.byName" (dict "all" (default list (get $all $key)) "own" (default list (get $own $key)) "key" $by "what" $key "where" $where) | fromJsonArray) -}}
{{- end -}}
{{- $env := dict "key" "name" "what" "env" "where" $where -}}
{{- $_ := set $env "all" (include "baton.envList" (dict "env" $all.env "what" "env") | fromJsonArray) -}}
{{- $_ := set $env "own" (include "baton.envList" (dict "env" $own.env "what" (printf "%s.env" $where)) | fromJsonArray) -}}
{{- $_ := set $knobs "env" (include "baton.byName" $env | fromJsonArray) -}}
{{- range $key := list "affinity" "schedulerName" "priorityClassName" "runtimeClassName" "dnsPolicy" "dnsConfig" -}}
{{- $_ := set $knobs $key (default (get $all $key) (get $own $key)) -}}
{{- end -}}
{{- range $key := list "hostNetwork" "shareProcessNamespace" "automountServiceAccountToken" -}}
{{- $value := get $own $key -}}
{{- if not (kindIs "bool" $value) -}}{{- $value = get $all $key -}}{{- end -}}
{{- $_ := set $knobs $key $value -}}
{{- end -}}
{{- toJson $knobs -}}
{{- end -}}

{{/* Two lists in one, as JSON; of one name the second's counts. Arguments: all, own, key, what, where. */}}
{{- define "baton.byName" -}}
{{- $key := .key -}}
{{- $names := dict -}}
{{- range $which, $items := dict "all" .all "own" .own -}}
{{- $seen := dict -}}
{{- range $items -}}
{{- $name := get . $key -}}
{{- if not $name -}}
{{- fail (printf "%s of %s: an entry has no %s: %s" $.what $.where $key (toJson .)) -}}
{{- end -}}
{{- if hasKey $seen $name -}}
{{- fail (printf "%s of %s: two entries have the %s %s" $.what (ternary $.where "the top level" (eq $which "own")) $key $name) -}}
{{- end -}}
{{- $_ := set $seen $name true -}}
{{- end -}}
{{- $_ := set $names $which $seen -}}
{{- end -}}
{{- $sum := list -}}
{{- range .all -}}
{{- if not (hasKey $names.own (get . $key)) -}}{{- $sum = append $sum . -}}{{- end -}}
{{- end -}}
{{- concat $sum .own | default list | toJson -}}
{{- end -}}

{{/* Environment as a list, from a map or a list. Arguments: env, what. */}}
{{- define "baton.envList" -}}
{{- $what := .what -}}
{{- $entries := list -}}
{{- if kindIs "map" .env -}}
{{- range $name, $value := .env -}}
{{- $entries = append $entries (merge (dict "name" $name) (ternary $value (dict "value" $value) (kindIs "map" $value))) -}}
{{- end -}}
{{- else -}}
{{- $entries = default list .env -}}
{{- end -}}
{{- range $entries -}}
{{- if and .value .valueFrom -}}
{{- fail (printf "%s.%s has value and valueFrom; leave one of them out" $what .name) -}}
{{- end -}}
{{- if and (hasKey . "valueFrom") (ne (len .valueFrom) 1) -}}
{{- fail (printf "%s.%s.valueFrom: name one source, such as secretKeyRef" $what .name) -}}
{{- end -}}
{{- end -}}
{{- toJson $entries -}}
{{- end -}}

{{/*
Environment of a container: the chart's own, then what values give. Four variables of the chart may be replaced, the others
say what the container is. Arguments: own (text), env (list), where.
*/}}
{{- define "baton.env" -}}
{{- $own := .own -}}
{{- $free := list "HOME" "BATON_CACHE" "RAY_USAGE_STATS_ENABLED" "RAY_worker_niceness" -}}
{{- $rays := list "RAY_ADDRESS" "RAY_IP" "FQ_RAY_IP" "RAY_PORT" "RAY_CLUSTER_NAME" "RAY_CLOUD_INSTANCE_ID" "RAY_NODE_TYPE_NAME" "RAY_AUTH_MODE" "RAY_AUTH_TOKEN" "RAY_enable_autoscaler_v2" -}}
{{- range .env -}}
{{- $name := .name -}}
{{- if has $name $rays -}}
{{- fail (printf "env of %s: %s is set by KubeRay; leave it out" $.where $name) -}}
{{- end -}}
{{- if eq $name "UCX_TLS" -}}
{{- fail (printf "env of %s: UCX_TLS follows from config.transfer.transports, which would overwrite it; set that" $.where) -}}
{{- end -}}
{{- range $entry := ($own | fromYamlArray) -}}
{{- if eq $entry.name $name -}}
{{- if not (has $name $free) -}}
{{- fail (printf "env of %s: %s is set by the chart; leave it out" $.where $name) -}}
{{- end -}}
{{- $kept := list -}}
{{- range ($own | fromYamlArray) -}}{{- if ne .name $name -}}{{- $kept = append $kept . -}}{{- end -}}{{- end -}}
{{- $own = ternary (toYaml $kept) "" (not (empty $kept)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $lines := list -}}
{{- with $own -}}{{- $lines = append $lines . -}}{{- end -}}
{{- range .env -}}
{{- if .valueFrom -}}
{{- $lines = append $lines (printf "- name: %s\n  valueFrom:\n    %s" (toYaml .name) (toYaml .valueFrom | indent 4 | trim)) -}}
{{- else -}}
{{- $lines = append $lines (printf "- name: %s\n  value: %s" (toYaml .name) (default "" .value | quote)) -}}
{{- end -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{/* Labels and annotations of values for a pod: of its kind and of all objects. */}}
{{- define "baton.podLabels" -}}
{{- include "baton.checkLabels" (dict "labels" .root.Values.commonLabels "where" "commonLabels") -}}
{{- merge (dict) .knobs.podLabels (default dict .root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{- define "baton.podAnnotations" -}}
{{- merge (dict) .knobs.podAnnotations (default dict .root.Values.commonAnnotations) | toYaml -}}
{{- end -}}

{{/* Labels by which the chart or KubeRay selects. */}}
{{- define "baton.checkLabels" -}}
{{- range $key, $_ := default dict .labels -}}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|component|managed-by|version)|helm\\.sh/chart|baton\\.io/.*|ray\\.io/.*|grafana_dashboard)$" $key -}}
{{- fail (printf "%s: %s is set by the chart or by KubeRay, which select by it; take another key" $.where $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Values that cannot be without one: null in a file takes the default away. */}}
{{- define "baton.checkNull" -}}
{{- include "baton.checkNullIn" (dict "needed" (.Files.Get "files/needed.yaml" | fromYaml) "values" .Values "path" "") -}}
{{- end -}}

{{- define "baton.checkNullIn" -}}
{{- range $key, $default := .needed -}}
{{- $value := index (default dict $.values) $key -}}
{{- if and (kindIs "map" $default) (kindIs "invalid" $value) -}}
{{- fail (printf "%s%s is null; leave the key out to have its defaults" $.path $key) -}}
{{- else if kindIs "map" $default -}}
{{- include "baton.checkNullIn" (dict "needed" $default "values" $value "path" (printf "%s%s." $.path $key)) -}}
{{- else if kindIs "invalid" $value -}}
{{- fail (printf "%s%s is null; leave the key out to have its default, %s" $.path $key (toJson $default)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
