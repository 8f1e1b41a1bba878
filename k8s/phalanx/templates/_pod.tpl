{{/* What every pod has: call with $. */}}
{{- define "phalanx.podSecurity" -}}
enableServiceLinks: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.podSecurity.runAsUser }}
  runAsGroup: {{ .Values.podSecurity.runAsUser }}
  fsGroup: {{ .Values.podSecurity.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "phalanx.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "phalanx.container" -}}
image: {{ include "phalanx.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "phalanx.containerSecurity" . | nindent 2 }}
{{- end -}}

{{/* The places that a read-only image still writes to. */}}
{{- define "phalanx.scratchVolumes" -}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
{{- end -}}

{{- define "phalanx.scratchMounts" -}}
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/phalanx
{{- end -}}

{{/* Where nodes are to be chosen: call with a pod's values. */}}
{{- define "phalanx.placement" -}}
{{- with .nodeSelector -}}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "phalanx.modelVolume" -}}
- name: model
  {{- .Values.model.volume | default (dict "emptyDir" dict) | toYaml | nindent 2 }}
{{- end -}}

{{/* Call with (dict "root" $ "readOnly" BOOL). */}}
{{- define "phalanx.modelMount" -}}
- name: model
  mountPath: {{ .root.Values.model.mountPath }}
  {{- with .root.Values.model.subPath }}
  subPath: {{ . }}
  {{- end }}
  readOnly: {{ .readOnly }}
{{- end -}}

{{/* Known models lie below this folder. */}}
{{- define "phalanx.modelEnv" -}}
- name: PHALANX_CACHE
  value: {{ .Values.model.mountPath }}
{{- end -}}

{{- define "phalanx.fetchModel" -}}
{{- with .Values.model.fetch -}}
{{- if .command -}}
- name: fetch-model
  image: {{ .image | default (include "phalanx.image" $) }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  securityContext:
    {{- include "phalanx.containerSecurity" $ | nindent 4 }}
  command:
    {{- toYaml .command | nindent 4 }}
  env:
    {{- include "phalanx.modelEnv" $ | nindent 4 }}
    {{- with $.Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    {{- include "phalanx.scratchMounts" $ | nindent 4 }}
    {{- include "phalanx.modelMount" (dict "root" $ "readOnly" false) | nindent 4 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Ray's token, for whoever speaks to Ray. */}}
{{- define "phalanx.rayAuthEnv" -}}
- name: RAY_AUTH_MODE
  value: {{ ternary "token" "disabled" .Values.ray.auth.enabled }}
{{- if .Values.ray.auth.enabled }}
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "phalanx.raySecret" . }}
      key: auth_token
{{- end }}
{{- end -}}
