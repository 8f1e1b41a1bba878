{{/* A job on the Ray cluster: call with (dict "root" $ "command" TEXT). Ray's job server starts it on the head, with the
files of /etc/phalanx as its folder. The shell is process 1, which has to be told to heed SIGTERM. */}}
{{- define "phalanx.submit" -}}
{{- $url := urlParse (include "phalanx.jobServer" .root) -}}
trap 'exit 0' TERM
until python -c 'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)' {{ regexReplaceAll ":\\d+$" $url.host "" }} {{ regexFind "\\d+$" $url.host | default (ternary "443" "80" (eq $url.scheme "https")) }} 2>/dev/null
do sleep 2 & wait $!
done
ray job submit --address {{ include "phalanx.jobServer" .root }} --working-dir /etc/phalanx -- {{ .command }} & wait $!
{{- end -}}

{{/* Succeeds when the coordinator's registry can be reached. */}}
{{- define "phalanx.registryReached" -}}
python -c 'import socket; socket.create_connection(("{{ include "phalanx.registryHost" . }}", {{ include "phalanx.registryPort" . }}), 3)'
{{- end -}}

{{/* The container, less its name and script. */}}
{{- define "phalanx.driverContainer" -}}
{{ include "phalanx.container" . }}
env:
  {{- include "phalanx.rayAuthEnv" . | nindent 2 }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  {{- toYaml .Values.driver.resources | nindent 2 }}
volumeMounts:
  {{- include "phalanx.scratchMounts" . | nindent 2 }}
  - name: spec
    mountPath: /etc/phalanx/spec.yaml
    subPath: spec.yaml
    readOnly: true
  - name: registry
    mountPath: /etc/phalanx/registry-secret
    subPath: secret
    readOnly: true
{{- end -}}

{{- define "phalanx.driverVolumes" -}}
{{ include "phalanx.scratchVolumes" . }}
- name: spec
  configMap:
    name: {{ include "phalanx.fullname" . }}-spec
{{ include "phalanx.registryVolume" . }}
{{- end -}}
