{{/* The labels by which the expressions of alerts and dashboard tell deployments apart, as a label matcher. */}}
{{- define "phalanx.metricsMatcher" -}}
namespace="{{ .Release.Namespace }}",deployment="{{ include "phalanx.fullname" . }}"
{{- end -}}

{{/* Where the coordinator shows its metrics. The name has the address of every pod that may have the coordinator;
Prometheus tries one after the other, as gateways do with the registry. */}}
{{- define "phalanx.coordinatorMetrics" -}}
{{- $host := include "phalanx.registryHost" . -}}
{{ $host }}{{ if not (contains "." $host) }}.{{ .Release.Namespace }}.svc{{ end }}:{{ include "phalanx.metricsPort" . }}
{{- end -}}

{{/* The rule of a NetworkPolicy that lets scrapers in. */}}
{{- define "phalanx.scraped" -}}
{{- if .Values.metrics.enabled -}}
- ports:
    - port: {{ include "phalanx.metricsPort" . }}
  {{- with .Values.networkPolicy.scrapers }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}
