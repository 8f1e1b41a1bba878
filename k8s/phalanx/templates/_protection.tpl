{{/* Where gateways find certificates and tokens, and clients theirs. */}}
{{- define "phalanx.tlsSecret" -}}
{{- with .Values.security.tls -}}
{{- .existingSecret | default (ternary (printf "%s-tls" (include "phalanx.fullname" $)) "" .certManager.enabled) -}}
{{- end -}}
{{- end -}}

{{/* Where the processes of the deployment find the certificate that they show each other. */}}
{{- define "phalanx.internalSecret" -}}
{{- with .Values.security.internalTls -}}
{{- .existingSecret | default (ternary (printf "%s-internal" (include "phalanx.fullname" $)) "" .certManager.enabled) -}}
{{- end -}}
{{- end -}}

{{- define "phalanx.internalMount" -}}
{{- if include "phalanx.internalSecret" . -}}
- name: internal
  mountPath: /etc/phalanx/internal
  readOnly: true
{{- end }}
{{- end -}}

{{- define "phalanx.internalVolume" -}}
{{- with include "phalanx.internalSecret" . -}}
- name: internal
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* What the coordinator's registry lets gateways in by. */}}
{{- define "phalanx.registryVolume" -}}
- name: registry
  secret:
    secretName: {{ include "phalanx.registrySecret" . }}
    defaultMode: 0440
{{- end -}}

{{- define "phalanx.gatewayProtection" -}}
- --registry-secret=/etc/phalanx/registry/secret
{{- if include "phalanx.internalSecret" . }}
- --internal-certificate=/etc/phalanx/internal/tls.crt
- --internal-key=/etc/phalanx/internal/tls.key
- --internal-ca=/etc/phalanx/internal/ca.crt
{{- end }}
{{- with .Values.security }}
{{- if include "phalanx.tlsSecret" $ }}
- --certificate=/etc/phalanx/tls/tls.crt
- --key=/etc/phalanx/tls/tls.key
{{- if .tls.verifyClients }}
- --client-ca=/etc/phalanx/tls/ca.crt
{{- end }}
{{- end }}
{{- if .tokensSecret }}
- --tokens=/etc/phalanx/tokens/tokens.yaml
{{- end }}
{{- if .insecure }}
- --insecure
{{- end }}
{{- end }}
{{- end -}}

{{- define "phalanx.gatewaySecretMounts" -}}
- name: registry
  mountPath: /etc/phalanx/registry
  readOnly: true
{{ include "phalanx.internalMount" . }}
{{- if include "phalanx.tlsSecret" . }}
- name: tls
  mountPath: /etc/phalanx/tls
  readOnly: true
{{- end }}
{{- if .Values.security.tokensSecret }}
- name: tokens
  mountPath: /etc/phalanx/tokens
  readOnly: true
{{- end }}
{{- end -}}

{{- define "phalanx.gatewaySecretVolumes" -}}
{{ include "phalanx.registryVolume" . }}
{{ include "phalanx.internalVolume" . }}
{{- with include "phalanx.tlsSecret" . }}
- name: tls
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.security.tokensSecret }}
- name: tokens
  secret:
    secretName: {{ . }}
{{- end }}
{{- end -}}

{{/* What a client in the cluster says to be let in. */}}
{{- define "phalanx.clientEnv" -}}
{{- with .Values.security }}
{{- if and (include "phalanx.tlsSecret" $) .tls.ownAuthority }}
- name: PHALANX_CA
  value: /etc/phalanx/authority/ca.crt
{{- end }}
{{- if .tls.verifyClients }}
- name: PHALANX_CERTIFICATE
  value: /etc/phalanx/client/tls.crt
- name: PHALANX_KEY
  value: /etc/phalanx/client/tls.key
{{- end }}
{{- if .tokensSecret }}
- name: PHALANX_TOKEN_FILE
  value: /etc/phalanx/client/token
{{- end }}
{{- end }}
{{- end -}}

{{- define "phalanx.clientMounts" -}}
{{- if and (include "phalanx.tlsSecret" .) .Values.security.tls.ownAuthority }}
- name: authority
  mountPath: /etc/phalanx/authority
  readOnly: true
{{- end }}
{{- if .Values.security.testSecret }}
- name: client
  mountPath: /etc/phalanx/client
  readOnly: true
{{- end }}
{{- end -}}

{{- define "phalanx.clientVolumes" -}}
{{- if and (include "phalanx.tlsSecret" .) .Values.security.tls.ownAuthority }}
- name: authority
  secret:
    secretName: {{ include "phalanx.tlsSecret" . }}
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- with .Values.security.testSecret }}
- name: client
  secret:
    secretName: {{ . }}
{{- end }}
{{- end -}}
