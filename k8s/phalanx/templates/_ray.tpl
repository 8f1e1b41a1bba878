{{/* What `ray start` is told on every node: fixed ports below those that the kernel hands out, so that a NetworkPolicy
can tell Ray's from the replicas', and a small object store, as nothing large goes through Ray. */}}
{{- define "phalanx.rayStartParams" -}}
object-store-memory: "104857600"
node-manager-port: "6380"
object-manager-port: "6381"
runtime-env-agent-port: "6382"
dashboard-agent-grpc-port: "6383"
dashboard-agent-listen-port: "6384"
metrics-export-port: "8080"
min-worker-port: "10002"
max-worker-port: "19999"
{{- end -}}

{{/* The pod of a head or a worker: call with (dict "root" $ "node" VALUES "name" NAME "ports" TEXT). */}}
{{- define "phalanx.rayPod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "phalanx.selector" (dict "root" $root "component" "ray") | nindent 4 }}
  {{- with .node.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "phalanx.podSecurity" $root | nindent 2 }}
  {{- if not .needsApi }}
  automountServiceAccountToken: false
  {{- end }}
  {{- with include "phalanx.placement" .node | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .node.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .node.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with include "phalanx.fetchModel" $root }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .name }}
      {{- include "phalanx.container" $root | nindent 6 }}
      {{- with .ports }}
      ports:
        {{- . | nindent 8 }}
      {{- end }}
      env:
        - name: RAY_USAGE_STATS_ENABLED
          value: "0"
        {{- include "phalanx.rayAuthEnv" $root | nindent 8 }}
        {{- include "phalanx.modelEnv" $root | nindent 8 }}
        {{- with $root.Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with .node.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        {{- toYaml .node.resources | nindent 8 }}
      volumeMounts:
        - name: shared-mem
          mountPath: /dev/shm
        {{- include "phalanx.scratchMounts" $root | nindent 8 }}
        {{- include "phalanx.modelMount" (dict "root" $root "readOnly" true) | nindent 8 }}
        {{- with include "phalanx.internalMount" $root }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .node.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: shared-mem
      emptyDir:
        medium: Memory
        sizeLimit: {{ .node.shmSize }}
    {{- include "phalanx.scratchVolumes" $root | nindent 4 }}
    {{- include "phalanx.modelVolume" $root | nindent 4 }}
    {{- with include "phalanx.internalVolume" $root }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .node.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "phalanx.headPorts" -}}
- {name: gcs-server, containerPort: 6379}
- {name: dashboard, containerPort: {{ include "phalanx.jobPort" . }}}
- {name: client, containerPort: 10001}
{{ include "phalanx.workerPorts" . }}
{{- end -}}

{{/* All of them whatever is switched on: KubeRay ends the pods when another is named. */}}
{{- define "phalanx.workerPorts" -}}
- {name: metrics, containerPort: 8080}
- {name: registry, containerPort: {{ include "phalanx.registryPort" . }}}
- {name: phalanx-metrics, containerPort: {{ include "phalanx.metricsPort" . }}}
{{- end -}}
