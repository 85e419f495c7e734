{{/* The endpoints of a ServiceMonitor or PodMonitor. With brokers, each of them is a job. Arguments: the root, the values. */}}
{{- define "celery-exporter.endpoints" -}}
{{- $root := index . 0 }}
{{- $monitor := index . 1 }}
{{- if $root.Values.brokers }}
{{- range $name, $_ := $root.Values.brokers }}
- {{ include "celery-exporter.endpoint" (tuple $root $monitor $name) | nindent 2 | trim }}
{{- end }}
{{- else }}
- {{ include "celery-exporter.endpoint" (tuple $root $monitor "") | nindent 2 | trim }}
{{- end }}
{{- end }}

{{- define "celery-exporter.endpoint" -}}
{{- $root := index . 0 }}
{{- $monitor := index . 1 }}
{{- $broker := index . 2 -}}
port: metrics
path: /metrics
{{- if $broker }}
params:
  broker: [{{ $broker | quote }}]
{{- end }}
{{- range $field := tuple "interval" "scrapeTimeout" "tlsConfig" "basicAuth" "honorLabels" "metricRelabelings" }}
{{- with index $monitor $field }}
{{ toYaml (dict $field .) }}
{{- end }}
{{- end }}
{{- with default (ternary "https" "" $root.Values.webConfig.tls) $monitor.scheme }}
scheme: {{ . }}
{{- end }}
{{- if or $broker $monitor.relabelings }}
relabelings:
  {{- if $broker }}
  - targetLabel: job
    replacement: {{ $broker | quote }}
  {{- end }}
  {{- with $monitor.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The fields that both kinds of monitors have. Arguments: the root, the values. */}}
{{- define "celery-exporter.monitorFields" -}}
{{- $root := index . 0 }}
{{- $monitor := index . 1 -}}
{{- with $monitor.jobLabel -}}
jobLabel: {{ . }}
{{ end -}}
namespaceSelector:
  matchNames: [{{ include "celery-exporter.namespace" $root | quote }}]
selector:
  matchLabels:
    {{- include "celery-exporter.selectorLabels" $root | nindent 4 }}
{{- with $monitor.sampleLimit }}
sampleLimit: {{ int64 . }}
{{- end }}
{{- end }}
