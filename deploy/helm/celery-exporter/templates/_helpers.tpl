{{- define "celery-exporter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of the objects: that of the release, with the name of the chart unless it is part of it. */}}
{{- define "celery-exporter.fullname" -}}
{{- $name := include "celery-exporter.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "celery-exporter.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- define "celery-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "celery-exporter.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "celery-exporter.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{ include "celery-exporter.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "celery-exporter.serviceAccountName" -}}
{{- default (ternary (include "celery-exporter.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "celery-exporter.image" -}}
{{- $name := .Values.image.repository }}
{{- with .Values.image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $name .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* A StatefulSet gives each pod a number, for its shard, and a claim of its own. */}}
{{- define "celery-exporter.kind" -}}
{{- ternary "StatefulSet" "Deployment" (or (gt (int .Values.shards) 1) .Values.persistence.enabled) }}
{{- end }}

{{/* URLs of brokers in values, by the key in the Secret, as YAML. */}}
{{- define "celery-exporter.urls" -}}
{{- $urls := dict }}
{{- with .Values.brokerUrl }}{{ $_ := set $urls $.Values.existingSecretKey . }}{{ end }}
{{- range $name, $broker := .Values.brokers }}
{{- with $broker }}{{ with .url }}{{ $_ := set $urls $name . }}{{ end }}{{ end }}
{{- end }}
{{- toYaml $urls }}
{{- end }}

{{- define "celery-exporter.secretName" -}}
{{- default (include "celery-exporter.fullname" .) .Values.existingSecret }}
{{- end }}

{{/* "true" if a URL is read from the Secret: not if each broker has a url_file of its own. */}}
{{- define "celery-exporter.mountsSecret" -}}
{{- $mounts := not .Values.brokers }}
{{- range .Values.brokers }}
{{- if not (and . .url_file) }}{{ $mounts = true }}{{ end }}
{{- end }}
{{- if $mounts }}true{{ end }}
{{- end }}

{{/* The configuration file. It has no URL: they are in the Secret. */}}
{{- define "celery-exporter.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if .Values.brokers }}
{{- $brokers := dict }}
{{- range $name, $values := .Values.brokers }}
{{- $broker := omit (default dict $values) "url" }}
{{- if not $broker.url_file }}{{ $_ := set $broker "url_file" (printf "/run/secrets/celery-exporter/%s" $name) }}{{ end }}
{{- $_ := set $brokers $name $broker }}
{{- end }}
{{- $_ := set $config "brokers" $brokers }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* Errors of values that the schema cannot describe. */}}
{{- define "celery-exporter.check" -}}
{{- $urls := include "celery-exporter.urls" . | fromYaml }}
{{- if and .Values.brokerUrl .Values.brokers }}
{{- fail "brokerUrl and brokers are set. Move the URL to brokers." }}
{{- end }}
{{- if and .Values.existingSecret $urls }}
{{- fail "existingSecret and the URL of a broker are set. Keep one of the two." }}
{{- end }}
{{- range $name, $broker := .Values.brokers }}
{{- if and $urls (not (hasKey $urls $name)) (not (and $broker $broker.url_file)) }}
{{- fail (printf "brokers.%s has no url, and other brokers have one. Set the URLs of all brokers, or use existingSecret." $name) }}
{{- end }}
{{- end }}
{{- range tuple "brokers" "broker_url" "broker_url_file" }}
{{- if hasKey $.Values.config . }}
{{- fail (printf "config.%s is set. Use brokers, brokerUrl or existingSecret." .) }}
{{- end }}
{{- end }}
{{- if hasKey .Values.config "port" }}
{{- fail "config.port is set. Probes and monitors use port 9808 of the pod. Use service.port for another port of the Service." }}
{{- end }}
{{- if hasKey .Values.config "state_file" }}
{{- fail "config.state_file is set. The state file is in /var/lib/celery-exporter. Use persistence for its volume." }}
{{- end }}
{{- if and .Values.webConfig.existingSecret .Values.config.web_config_file }}
{{- fail "webConfig.existingSecret and config.web_config_file are set. Keep one of the two." }}
{{- end }}
{{- if and (or .Values.webConfig.tls .Values.webConfig.authentication) (not (or .Values.webConfig.existingSecret .Values.config.web_config_file)) }}
{{- fail "webConfig describes a file, but there is none. Set webConfig.existingSecret, or config.web_config_file for a file of extraVolumes." }}
{{- end }}
{{- range .Values.keda.scaledObjects }}
{{- if gt (dig "minReplicaCount" 0 . | int) (dig "maxReplicaCount" 20 . | int) }}
{{- fail (printf "keda.scaledObjects: %s has a minReplicaCount above its maxReplicaCount." .name) }}
{{- end }}
{{- end }}
{{- if and (gt (int .Values.replicaCount) 1) (gt (int .Values.shards) 1) }}
{{- fail "replicaCount and shards are above 1. For standbys of shards, install a release for each shard, with CELERY_EXPORTER_SHARD in extraEnv." }}
{{- end }}
{{- if and (gt (int .Values.replicaCount) 1) (not .Values.config.event_queue_durable) }}
{{- fail "replicaCount is above 1. Two exporters count each event twice, unless config.event_queue_durable is true (RabbitMQ)." }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled }}
{{- fail "serviceMonitor and podMonitor are enabled. Prometheus would scrape each pod twice. Disable one of them." }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not .Values.service.enabled) }}
{{- fail "serviceMonitor is enabled without service. Enable service, or use podMonitor." }}
{{- end }}
{{- end }}
