{{/* The metadata of an object. Arguments: the root; optionally a name or its suffix, a namespace, further labels and annotations. */}}
{{- define "celery-exporter.metadata" -}}
{{- $root := .root -}}
name: {{ default (include "celery-exporter.fullname" $root) .name }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ default (include "celery-exporter.namespace" $root) .namespace }}
labels:
  {{- include "celery-exporter.labels" $root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
