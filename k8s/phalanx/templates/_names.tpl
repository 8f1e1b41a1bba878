{{- define "phalanx.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "phalanx.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.image.variant) }}
{{- end -}}

{{/* Call with (dict "root" $ "component" NAME). Pods are found by these, and carry no other: a label that changes with
every release would restart them. */}}
{{- define "phalanx.selector" -}}
app.kubernetes.io/name: phalanx
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "phalanx.labels" -}}
{{ include "phalanx.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{/* The ports that are the same everywhere. Ray's own, in _ray.tpl, and the registry's stay below 32768: what is above
is handed out by the kernel, to replicas among others. */}}
{{- define "phalanx.gatewayPort" -}}50051{{- end -}}
{{- define "phalanx.probePort" -}}50053{{- end -}}
{{- define "phalanx.registryPort" -}}20052{{- end -}}
{{- define "phalanx.metricsPort" -}}20053{{- end -}}
{{- define "phalanx.jobPort" -}}8265{{- end -}}

{{/* The Ray pods, one of which has the coordinator: a headless service, whose addresses are tried in turn. */}}
{{- define "phalanx.registryHost" -}}
{{- if .Values.ray.address -}}{{ .Values.ray.registryHost }}{{- else -}}{{ include "phalanx.fullname" . }}-registry{{- end -}}
{{- end -}}

{{/* Ray's job server; KubeRay makes the service of the head. */}}
{{- define "phalanx.jobServer" -}}
{{- .Values.ray.address | default (printf "http://%s-head-svc:%s" (include "phalanx.fullname" .) (include "phalanx.jobPort" .)) -}}
{{- end -}}

{{- define "phalanx.raySecret" -}}
{{- .Values.ray.auth.existingSecret | default (printf "%s-ray" (include "phalanx.fullname" .)) -}}
{{- end -}}

{{- define "phalanx.registrySecret" -}}
{{- .Values.security.registrySecret | default (printf "%s-registry" (include "phalanx.fullname" .)) -}}
{{- end -}}

{{/* The spec that is served, as a JSON object. The file of the registry's secret goes along with it as part of the job. */}}
{{- define "phalanx.spec" -}}
{{- $added := dict "name" (include "phalanx.fullname" .) "registry_listen" (printf ":%s" (include "phalanx.registryPort" .)) "registry_secret" "registry-secret" "wait_for_devices" "10m" -}}
{{- if include "phalanx.internalSecret" . -}}
{{- $_ := set $added "internal_tls" (dict "certificate" "/etc/phalanx/internal/tls.crt" "key" "/etc/phalanx/internal/tls.key" "ca" "/etc/phalanx/internal/ca.crt") -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $added "coordinator_metrics_address" (printf ":%s" (include "phalanx.metricsPort" .)) -}}
{{- end -}}
{{- mustMergeOverwrite $added (deepCopy .Values.spec) | toJson -}}
{{- end -}}
