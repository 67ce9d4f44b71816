{{/*
What the API server would refuse of a pod. KubeRay makes most pods, so that the refusal would stand in its operator's log,
after an installation that looked well. Arguments as of `baton.podSpec`.
*/}}
{{- define "baton.checkPod" -}}
{{- $knobs := .knobs -}}
{{- $where := .where -}}
{{- include "baton.checkSecurity" . -}}
{{- include "baton.checkTolerations" . -}}
{{- include "baton.checkContainers" . -}}
{{- include "baton.checkVolumes" . -}}
{{- if and (eq .kind "worker") $knobs.lifecycle.preStop -}}
{{- fail (printf "lifecycle.preStop of %s: a worker's own hook drains it before its pod ends; put yours into a sidecar" $where) -}}
{{- end -}}
{{- range $hook, $handler := $knobs.lifecycle -}}
{{- if ne (len $handler) 1 -}}
{{- fail (printf "lifecycle.%s of %s: name one of exec, httpGet, sleep" $hook $where) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $knobs.dnsPolicy "None") (not (dig "nameservers" list (default dict $knobs.dnsConfig))) -}}
{{- fail (printf "dnsPolicy of %s is None; name servers in dnsConfig.nameservers" $where) -}}
{{- end -}}
{{- if and $knobs.hostNetwork .root.Values.network.enabled (not .root.Values.network.nodeCidrs) -}}
{{- fail (printf "hostNetwork of %s: NetworkPolicies know these pods by the nodes' addresses alone; give those in network.nodeCidrs, or set network.enabled to false" $where) -}}
{{- end -}}
{{- $spread := dict -}}
{{- range $knobs.topologySpreadConstraints -}}
{{- $pair := printf "%s %s" .topologyKey .whenUnsatisfiable -}}
{{- if hasKey $spread $pair -}}
{{- fail (printf "topologySpreadConstraints of %s: two entries have topologyKey %s and whenUnsatisfiable %s" $where .topologyKey .whenUnsatisfiable) -}}
{{- end -}}
{{- $_ := set $spread $pair true -}}
{{- end -}}
{{- end -}}

{{- define "baton.checkTolerations" -}}
{{- range .knobs.tolerations -}}
{{- $operator := default "Equal" .operator -}}
{{- if and (not .key) (ne $operator "Exists") -}}
{{- fail (printf "tolerations of %s: an entry without key tolerates every taint, and needs operator Exists: %s" $.where (toJson .)) -}}
{{- end -}}
{{- if and (eq $operator "Exists") .value -}}
{{- fail (printf "tolerations of %s: operator Exists takes no value: %s" $.where (toJson .)) -}}
{{- end -}}
{{- if and (hasKey . "tolerationSeconds") (ne (default "" .effect) "NoExecute") -}}
{{- fail (printf "tolerations of %s: tolerationSeconds is of the effect NoExecute: %s" $.where (toJson .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "baton.checkContainers" -}}
{{- $names := dict .container "the chart's container" -}}
{{- if .root.Values.model.fetch.image -}}{{- $_ := set $names "fetch-model" "the chart's container" -}}{{- end -}}
{{- if eq .kind "worker" -}}{{- $_ := set $names "wait-gcs-ready" "KubeRay's container" -}}{{- end -}}
{{- if and (eq .kind "head") .root.Values.autoscaling.enabled -}}{{- $_ := set $names "autoscaler" "KubeRay's container" -}}{{- end -}}
{{- range $what := list "initContainers" "sidecars" -}}
{{- range get $.knobs $what -}}
{{- if hasKey $names .name -}}
{{- fail (printf "%s of %s: %s is the name of %s in this pod; take another" $what $.where .name (get $names .name)) -}}
{{- end -}}
{{- if not (and (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .name) (le (len .name) 63)) -}}
{{- fail (printf "%s of %s: %q is no name of a container; take small letters, digits and hyphens" $what $.where .name) -}}
{{- end -}}
{{- if not .image -}}
{{- fail (printf "%s of %s: %s has no image" $what $.where .name) -}}
{{- end -}}
{{- if and (eq $what "sidecars") .restartPolicy -}}
{{- fail (printf "sidecars of %s: restartPolicy of %s is for init containers; put it into initContainers" $.where .name) -}}
{{- end -}}
{{- $_ := set $names .name (printf "another of %s" $what) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "baton.checkVolumes" -}}
{{- $volumes := dict -}}
{{- range include (printf "baton.%s.volumes" .kind) . | fromYamlArray -}}{{- $_ := set $volumes .name true -}}{{- end -}}
{{- if and (eq .kind "head") .root.Values.autoscaling.enabled -}}{{- $_ := set $volumes "ray-logs" true -}}{{- end -}}
{{- range .knobs.extraVolumes -}}
{{- if hasKey $volumes .name -}}
{{- fail (printf "extraVolumes of %s: %s is a volume of the chart or of KubeRay; take another name" $.where .name) -}}
{{- end -}}
{{- if not (and (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .name) (le (len .name) 63)) -}}
{{- fail (printf "extraVolumes of %s: %q is no name of a volume; take small letters, digits and hyphens" $.where .name) -}}
{{- end -}}
{{- if ne (len (omit . "name")) 1 -}}
{{- fail (printf "extraVolumes of %s: %s needs one source, such as secret, configMap or emptyDir" $.where .name) -}}
{{- end -}}
{{- end -}}
{{- range .knobs.extraVolumes -}}{{- $_ := set $volumes .name true -}}{{- end -}}
{{- $paths := dict -}}
{{- range include (printf "baton.%s.mounts" .kind) . | fromYamlArray -}}
{{- if hasKey $paths (trimSuffix "/" .mountPath) -}}
{{- fail (printf "model.mountPath is %s, which the chart mounts itself; take another folder" .mountPath) -}}
{{- end -}}
{{- $_ := set $paths (trimSuffix "/" .mountPath) true -}}
{{- end -}}
{{- range .knobs.extraVolumeMounts -}}
{{- if hasKey $paths (trimSuffix "/" .mountPath) -}}
{{- fail (printf "extraVolumeMounts of %s: the chart mounts %s itself; take another path" $.where .mountPath) -}}
{{- end -}}
{{- end -}}
{{- $mounts := dict "extraVolumeMounts" .knobs.extraVolumeMounts -}}
{{- range $what := list "initContainers" "sidecars" -}}
{{- range get $.knobs $what -}}{{- $_ := set $mounts (printf "%s %s" $what .name) (default list .volumeMounts) -}}{{- end -}}
{{- end -}}
{{- range $what, $list := $mounts -}}
{{- range $list -}}
{{- if not (hasKey $volumes .name) -}}
{{- fail (printf "%s of %s: no volume is called %s; add it to extraVolumes" $what $.where .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
