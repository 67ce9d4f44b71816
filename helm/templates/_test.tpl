{{/* What is the own of the pod of `helm test` in `baton.podSpec`. */}}
{{- define "baton.test.start" -}}
restartPolicy: Never
serviceAccountName: {{ include "baton.account" (dict "root" .root "component" "gateway") }}
automountServiceAccountToken: {{ default false .knobs.automountServiceAccountToken }}
enableServiceLinks: false
{{- end -}}

{{- define "baton.test.process" -}}
command: [baton, generate]
args:
  - --endpoint
  - {{ include "baton.fullname" .root }}-grpc.{{ .root.Release.Namespace }}.svc:{{ include "baton.port" (dict "root" .root "key" "grpc_port") }}
  - --max-tokens
  - "16"
  - --deadline-s
  - "120"
  - --json
  - Say hello.
{{- end -}}

{{- define "baton.test.env" -}}
- name: HOME
  value: /tmp
- name: BATON_CACHE
  value: /tmp/baton
{{- if .keys }}
- name: BATON_KEY_FILE
  value: /etc/baton/test-key/key
{{- end }}
{{- if .tls }}
- name: BATON_CA_FILE
  value: /etc/baton/test-ca/ca.crt
- name: BATON_SERVER_NAME
  value: {{ include "baton.serverName" .root }}
{{- end }}
{{- if .client }}
- name: BATON_CERTIFICATE_FILE
  value: /etc/baton/test-client/tls.crt
- name: BATON_PRIVATE_KEY_FILE
  value: /etc/baton/test-client/tls.key
{{- end }}
{{- end -}}

{{- define "baton.test.ports" -}}{{- end -}}
{{- define "baton.test.lifecycle" -}}{{- end -}}
{{- define "baton.test.startup" -}}{{- end -}}
{{- define "baton.test.readiness" -}}{{- end -}}
{{- define "baton.test.liveness" -}}{{- end -}}

{{- define "baton.test.resources" -}}
requests: {cpu: 250m, memory: 512Mi, ephemeral-storage: 256Mi}
limits: {cpu: "1", memory: 1Gi, ephemeral-storage: 256Mi}
{{- end -}}

{{- define "baton.test.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .keys }}
- {name: key, mountPath: /etc/baton/test-key, readOnly: true}
{{- end }}
{{- if .tls }}
- {name: ca, mountPath: /etc/baton/test-ca, readOnly: true}
{{- end }}
{{- if .client }}
- {name: client, mountPath: /etc/baton/test-client, readOnly: true}
{{- end }}
{{- end -}}

{{- define "baton.test.volumes" -}}
{{- $values := .root.Values -}}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if .keys }}
- name: key
  secret:
    secretName: {{ $values.helmTest.keySecret }}
    defaultMode: 0440
    items: [{key: {{ $values.helmTest.keyField | quote }}, path: key}]
{{- end }}
{{- if .tls }}
# The authority alone: where it is a field of the gateways' own Secret, their private key stays out of this pod.
- name: ca
  secret:
    secretName: {{ default $values.secrets.tls $values.helmTest.caSecret }}
    defaultMode: 0440
    items: [{key: {{ $values.helmTest.caField | quote }}, path: ca.crt}]
{{- end }}
{{- if .client }}
- name: client
  secret:
    secretName: {{ $values.helmTest.clientSecret }}
    defaultMode: 0440
{{- end }}
{{- end -}}
