{{/*
The one pod of this chart. What a kind of pod has of its own is in `_head.tpl`, `_worker.tpl`, `_gateway.tpl` and
`_test.tpl`, by names such as `baton.worker.env`; what values add to any pod is in `_knobs.tpl`.

Arguments: root; kind (head, worker, gateway, test); where (the section of values, for what is said); container; image;
knobs (of `baton.knobs`); cluster, group and revision where the kind has them; priority; runtime; capabilities.
*/}}
{{- define "baton.podTemplate" -}}
metadata:
  labels:
    {{- include (printf "baton.%s.labels" .kind) . | nindent 4 }}
    {{- with include "baton.podLabels" . | fromYaml }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $own := include (printf "baton.%s.annotations" .kind) . }}
  {{- $given := include "baton.podAnnotations" . | fromYaml }}
  {{- if or $own $given }}
  annotations:
    {{- with $own }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $given }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  {{- include "baton.podSpec" . | nindent 2 }}
{{- end -}}

{{- define "baton.podSpec" -}}
{{- $root := .root -}}
{{- $knobs := .knobs -}}
{{ include (printf "baton.%s.start" .kind) . }}
{{- with include "baton.pullSecrets" $root | fromYamlArray }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .priority }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtime }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $knobs.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with $knobs.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $knobs.tolerations (default list .tolerations) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "baton.affinity" . }}
affinity:
  {{- . | nindent 2 }}
{{- end }}
{{- if or (has .kind (list "worker" "gateway")) $knobs.topologySpreadConstraints }}
{{- include "baton.spread" . | nindent 0 }}
{{- end }}
{{- with include "baton.podNetwork" . }}
{{- . | nindent 0 }}
{{- end }}
{{- if kindIs "bool" $knobs.shareProcessNamespace }}
shareProcessNamespace: {{ $knobs.shareProcessNamespace }}
{{- end }}
{{- with .claims }}
resourceClaims:
  {{- range . }}
  - name: {{ .name }}
    {{- with .resourceClaimName }}
    resourceClaimName: {{ . }}
    {{- end }}
    {{- with .resourceClaimTemplateName }}
    resourceClaimTemplateName: {{ . }}
    {{- end }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "baton.podSecurity" $knobs | nindent 2 }}
{{- if ne .kind "test" }}
{{- include "baton.initContainers" . | nindent 0 }}
{{- end }}
containers:
  - name: {{ .container }}
    image: {{ .image }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    {{- include (printf "baton.%s.process" .kind) . | nindent 4 }}
    env:
      {{- include "baton.env" (dict "own" (include (printf "baton.%s.env" .kind) .) "env" $knobs.env "where" .where) | nindent 6 }}
    {{- with $knobs.envFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with include (printf "baton.%s.ports" .kind) . }}
    ports:
      {{- . | nindent 6 }}
    {{- end }}
    {{- with include "baton.lifecycle" . }}
    lifecycle:
      {{- . | nindent 6 }}
    {{- end }}
    {{- $pod := . }}
    {{- range $probe := list "startup" "readiness" "liveness" }}
    {{- with include (printf "baton.%s.%s" $pod.kind $probe) $pod }}
    {{ $probe }}Probe:
      {{- include "baton.laidOver" (dict "own" . "given" (get $knobs (printf "%sProbe" $probe))) | nindent 6 }}
    {{- end }}
    {{- end }}
    resources:
      {{- include (printf "baton.%s.resources" .kind) . | nindent 6 }}
      {{- with .claims }}
      claims:
        {{- range . }}
        - name: {{ .name }}
          {{- with .request }}
          request: {{ . }}
          {{- end }}
        {{- end }}
      {{- end }}
    securityContext:
      {{- include "baton.containerSecurity" (dict "knobs" $knobs "add" .capabilities) | nindent 6 }}
    volumeMounts:
      {{- include (printf "baton.%s.mounts" .kind) . | nindent 6 }}
      {{- with $knobs.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  {{- with $knobs.sidecars }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- include (printf "baton.%s.volumes" .kind) . | nindent 2 }}
  {{- with $knobs.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- include "baton.checkPod" . }}
{{- end -}}

{{/* Files that every Baton container reads or writes. */}}
{{- define "baton.mounts" -}}
- name: spec
  mountPath: /etc/baton/spec
  readOnly: true
- name: model
  mountPath: {{ .Values.model.mountPath }}
  {{- with .Values.model.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .Values.secrets.cluster }}
- name: cluster-secret
  mountPath: /etc/baton/cluster
  readOnly: true
{{- end }}
{{- with .Values.secrets.internalTls }}
- name: internal-tls
  mountPath: /etc/baton/internal-tls
  readOnly: true
{{- end }}
{{- end -}}

{{/* Arguments: root, diskGib. */}}
{{- define "baton.volumes" -}}
{{- $model := .root.Values.model -}}
- name: spec
  configMap:
    name: {{ include "baton.fullname" .root }}
- name: tmp
  emptyDir:
    sizeLimit: {{ include "baton.mib" .diskGib }}
{{- with .root.Values.secrets.cluster }}
- name: cluster-secret
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.secrets.internalTls }}
- name: internal-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
- name: model
{{- if eq $model.kind "pvc" }}
  persistentVolumeClaim:
    claimName: {{ required "model.claim: name the PersistentVolumeClaim that holds the weights, or choose another model.kind" $model.claim }}
    {{- if not $model.fetch.image }}
    readOnly: true
    {{- end }}
{{- else if eq $model.kind "hostPath" }}
  hostPath:
    path: {{ required "model.hostPath: name the folder on the nodes" $model.hostPath }}
    type: Directory
{{- else if eq $model.kind "image" }}
  {{- if semverCompare "<1.33-0" .root.Capabilities.KubeVersion.Version }}
  {{- fail (printf "model.kind image needs Kubernetes 1.33, and this is %s; choose pvc, hostPath or emptyDir" .root.Capabilities.KubeVersion.Version) }}
  {{- end }}
  image:
    reference: {{ required "model.image: name the OCI artifact" $model.image }}
    pullPolicy: IfNotPresent
{{- else }}
  {{- if not $model.fetch.image }}
  {{- fail "model.kind emptyDir is empty without model.fetch.image, which fills it" }}
  {{- end }}
  emptyDir:
    sizeLimit: {{ include "baton.mib" $model.sizeGib }}
{{- end }}
{{- end -}}

{{- define "baton.initContainers" -}}
{{- $root := .root -}}
{{- $fetch := $root.Values.model.fetch -}}
{{- if or .knobs.initContainers $fetch.image }}
initContainers:
  {{- with .knobs.initContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if $fetch.image }}
  - name: fetch-model
    image: {{ $fetch.image }}
    imagePullPolicy: IfNotPresent
    command: {{ toJson $fetch.command }}
    {{- with $fetch.args }}
    args: {{ toJson . }}
    {{- end }}
    {{- if or $fetch.envFromSecret $fetch.envFrom }}
    envFrom:
      {{- with $fetch.envFromSecret }}
      - secretRef:
          name: {{ . }}
      {{- end }}
      {{- with $fetch.envFrom }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- end }}
    env:
      {{- $env := include "baton.byName" (dict "all" (include "baton.envList" (dict "env" $root.Values.env "what" "env") | fromJsonArray) "own" (include "baton.envList" (dict "env" $fetch.env "what" "model.fetch.env") | fromJsonArray) "key" "name" "what" "env" "where" "model.fetch") | fromJsonArray }}
      {{- include "baton.env" (dict "own" "- name: HOME\n  value: /tmp" "env" $env "where" "model.fetch") | nindent 6 }}
    resources:
      requests: {cpu: 500m, memory: 512Mi, ephemeral-storage: 1Gi}
      limits: {cpu: "4", memory: 4Gi, ephemeral-storage: 1Gi}
    securityContext:
      {{- include "baton.containerSecurity" (dict "knobs" .knobs) | nindent 6 }}
    volumeMounts:
      - name: model
        mountPath: {{ $root.Values.model.mountPath }}
        {{- with $root.Values.model.subPath }}
        subPath: {{ . | quote }}
        {{- end }}
      - name: tmp
        mountPath: /tmp
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Hooks: the chart's own, and those of values in their place. */}}
{{- define "baton.lifecycle" -}}
{{- include "baton.laidOver" (dict "own" (include (printf "baton.%s.lifecycle" .kind) .) "given" .knobs.lifecycle) -}}
{{- end -}}
