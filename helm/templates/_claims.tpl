{{/*
Claims of a worker group by dynamic resource allocation, as JSON, each with the name of its template. The name holds a part
of the specification's digest: a template cannot be changed, and an upgrade makes another. Arguments: root, group, cluster.
*/}}
{{- define "baton.claims" -}}
{{- $group := .group -}}
{{- $claims := list -}}
{{- range $group.resourceClaims -}}
{{- $claim := deepCopy . -}}
{{- $ways := list .spec .resourceClaimName .resourceClaimTemplateName | compact -}}
{{- if ne (len $ways) 1 -}}
{{- fail (printf "resourceClaims of worker group %s: %s needs one of spec, resourceClaimTemplateName, resourceClaimName" $group.name .name) -}}
{{- end -}}
{{- if .spec -}}
{{- $_ := set $claim "resourceClaimTemplateName" (printf "%s-%s-%s-%s" $.cluster $group.name .name (toJson .spec | sha256sum | trunc 8)) -}}
{{- end -}}
{{- $claims = append $claims $claim -}}
{{- end -}}
{{- include "baton.byName" (dict "all" list "own" $claims "key" "name" "what" "resourceClaims" "where" (printf "worker group %s" $group.name)) -}}
{{- end -}}

{{/* The version of resource.k8s.io that this Kubernetes serves, the newest it knows. */}}
{{- define "baton.claimVersion" -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if semverCompare ">=1.34-0" $version -}}v1
{{- else if semverCompare ">=1.33-0" $version -}}v1beta2
{{- else if semverCompare ">=1.32-0" $version -}}v1beta1
{{- else if semverCompare ">=1.31-0" $version -}}v1alpha3
{{- else -}}
{{- fail (printf "resourceClaims need Kubernetes 1.31, and this is %s" $version) -}}
{{- end -}}
{{- end -}}

{{/* A claim's specification for that version. Before v1beta2 a request had no `exactly`. Arguments: root, spec, where. */}}
{{- define "baton.claimSpec" -}}
{{- $spec := deepCopy .spec -}}
{{- $version := include "baton.claimVersion" .root -}}
{{- $requests := list -}}
{{- range default list $spec.devices.requests -}}
{{- if not (or .exactly .firstAvailable) -}}
{{- fail (printf "resourceClaims of %s: a request has exactly or firstAvailable, as in resource.k8s.io/v1: %s" $.where (toJson .)) -}}
{{- end -}}
{{- if not (has $version (list "v1" "v1beta2")) -}}
{{- if .firstAvailable -}}
{{- fail (printf "resourceClaims of %s: firstAvailable needs Kubernetes 1.33, and this is %s" $.where $.root.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- $requests = append $requests (merge (dict "name" .name) .exactly) -}}
{{- else -}}
{{- $requests = append $requests . -}}
{{- end -}}
{{- end -}}
{{- if not $requests -}}
{{- fail (printf "resourceClaims of %s: spec.devices.requests is empty" .where) -}}
{{- end -}}
{{- $_ := set $spec.devices "requests" $requests -}}
{{- toYaml $spec -}}
{{- end -}}
