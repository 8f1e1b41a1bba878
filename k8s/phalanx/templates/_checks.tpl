{{/* What a schema cannot say, or not clearly. */}}
{{- define "phalanx.checks" -}}
{{- with .Values.model }}
{{- if not (or .volume .fetch.command) }}
{{- fail "model.volume: name a volume that holds the model, or have model.fetch.command fill an empty one" }}
{{- end }}
{{- end }}
{{- with .Values.ray }}
{{- if and .address (not .registryHost) }}
{{- fail "ray.registryHost: with ray.address, name a headless service over all pods of that Ray cluster" }}
{{- end }}
{{- if and .address .auth.enabled (not .auth.existingSecret) }}
{{- fail "ray.auth.existingSecret: with ray.address, name the Secret that holds that cluster's auth_token, or set ray.auth.enabled=false" }}
{{- end }}
{{- range .workerGroups }}
{{- if gt (dig "minReplicas" 0 . | int) (dig "maxReplicas" .replicas . | int) }}
{{- fail (printf "ray.workerGroups: %s has minReplicas above maxReplicas" .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.security }}
{{- $tls := include "phalanx.tlsSecret" $ }}
{{- if and .tls.certManager.enabled (not .tls.existingSecret) (not .tls.certManager.issuerRef) }}
{{- fail "security.tls.certManager.issuerRef: name the issuer" }}
{{- end }}
{{- if and .internalTls.certManager.enabled (not .internalTls.existingSecret) (not .internalTls.certManager.issuerRef) }}
{{- fail "security.internalTls.certManager.issuerRef: name the issuer" }}
{{- end }}
{{- if and .tls.verifyClients (not $tls) }}
{{- fail "security.tls.verifyClients: clients show certificates where the gateways have one: name security.tls.existingSecret" }}
{{- end }}
{{- if not (or .insecure (and $tls (or .tokensSecret .tls.verifyClients))) }}
{{- fail "security: give the gateways TLS (security.tls) and tokens (security.tokensSecret, or security.tls.verifyClients), or say security.insecure=true where the network keeps others out" }}
{{- end }}
{{- end }}
{{- with .Values.gateway.autoscaling }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- fail "gateway.autoscaling: minReplicas is above maxReplicas" }}
{{- end }}
{{- if and .enabled (not (or .targetStreams .targetCPUUtilizationPercentage .metrics)) }}
{{- fail "gateway.autoscaling: say what it goes by: targetStreams, targetCPUUtilizationPercentage or metrics" }}
{{- end }}
{{- if and .enabled .targetStreams (not $.Values.metrics.enabled) }}
{{- fail "gateway.autoscaling.targetStreams: the number of streams is a metric, so set metrics.enabled" }}
{{- end }}
{{- end }}
{{- range $part := list "serviceMonitor" "prometheusRule" "dashboard" }}
{{- if and (get $.Values.metrics $part).enabled (not $.Values.metrics.enabled) }}
{{- fail (printf "metrics.%s: it would have no metrics, so set metrics.enabled" $part) }}
{{- end }}
{{- end }}
{{- end -}}
