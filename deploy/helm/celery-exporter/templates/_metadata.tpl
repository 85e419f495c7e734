{{/* The metadata of an object. Arguments: the root; optionally a name or its suffix, a namespace, further labels and annotations. */}}
{{- define "celery-exporter.metadata" -}}
{{- $root := .root -}}
name: {{ list (default (include "celery-exporter.fullname" $root) .name) .suffix | compact | join "-" | quote }}
namespace: {{ default (include "celery-exporter.namespace" $root) .namespace | quote }}
labels:
  {{- include "celery-exporter.mergedLabels" (tuple $root .labels) | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The labels of an object. Further ones take precedence, because a key that is there twice is an error. Arguments: the root, further labels. */}}
{{- define "celery-exporter.mergedLabels" -}}
{{- toYaml (merge (dict) (default dict (index . 1)) (include "celery-exporter.labels" (index . 0) | fromYaml)) }}
{{- end }}
