{{- define "thumbwheel.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "thumbwheel.selector" -}}
app.kubernetes.io/name: thumbwheel
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "thumbwheel.labels" -}}
{{ include "thumbwheel.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "thumbwheel.claim" -}}
{{ .Values.data.claim | default (printf "%s-data" (include "thumbwheel.name" .)) }}
{{- end }}

{{/* thumbwheel.toml: what the chart knows is stronger than what values say. */}}
{{- define "thumbwheel.config" -}}
{{- $name := include "thumbwheel.name" . }}
{{- $own := dict
  "data_dir" "/data"
  "server" (dict "host" "0.0.0.0" "grpc_port" 50051 "admin_port" 50052 "web_port" 8080 "http_port" 9401)
  "learner" (dict "http_host" "0.0.0.0" "http_port" 9402 "server" (printf "%s-admin:50052" $name))
  "security" (dict "auth" "keys" "tls_certificate" "/tls/tls.crt" "tls_key" "/tls/tls.key")
  "client" (dict "ca" "/tls/ca.crt" "server_name" .Values.tls.serverName "key_file" "/keys/learner.key")
  "redis" (dict "url" .Values.redis.url)
}}
{{- if .Values.redis.passwordSecret }}{{ $_ := set $own.redis "password_file" "/redis/password" }}{{ end }}
{{- mergeOverwrite (deepCopy .Values.config) $own | toToml }}
{{- end }}

{{/* What both pods are, but for their container. */}}
{{- define "thumbwheel.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "thumbwheel.container" -}}
image: {{ printf "%s:%s" .root.Values.image.repository .root.Values.image.tag | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources: {{ toYaml .values.resources | nindent 2 }}
{{- end }}

{{- define "thumbwheel.mounts" -}}
- {name: config, mountPath: /etc/thumbwheel, readOnly: true}
- {name: data, mountPath: /data}
- {name: tls, mountPath: /tls, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.redis.passwordSecret }}
- {name: redis, mountPath: /redis, readOnly: true}
{{- end }}
{{- end }}

{{- define "thumbwheel.volumes" -}}
- name: config
  configMap: {name: {{ include "thumbwheel.name" . }}}
- name: data
  persistentVolumeClaim: {claimName: {{ include "thumbwheel.claim" . }}}
- name: tls
  secret: {secretName: {{ required "tls.secret" .Values.tls.secret }}, defaultMode: 0440}
- name: tmp
  emptyDir: {}
{{- if .Values.redis.passwordSecret }}
- name: redis
  secret: {secretName: {{ .Values.redis.passwordSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "thumbwheel.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: http, scheme: HTTPS}
  periodSeconds: 5
  failureThreshold: {{ div .startSeconds 5 }}
readinessProbe:
  httpGet: {path: /readyz, port: http, scheme: HTTPS}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /healthz, port: http, scheme: HTTPS}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}
