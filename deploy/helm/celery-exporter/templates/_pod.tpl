{{/* A probe, adapted to the web configuration file. Arguments: the root, the probe. */}}
{{- define "celery-exporter.probe" -}}
{{- $web := (index . 0).Values.webConfig }}
{{- $probe := deepCopy (index . 1) }}
{{- with $probe.httpGet }}
{{- if $web.tls }}{{ $_ := set . "scheme" "HTTPS" }}{{ end }}
{{- if and $web.authentication (eq .path "/-/ready") }}{{ $_ := set . "path" "/-/healthy" }}{{ end }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{- define "celery-exporter.env" -}}
{{- if not .Values.brokers }}
- name: CELERY_EXPORTER_BROKER_URL_FILE
  value: /run/secrets/celery-exporter/{{ .Values.existingSecretKey }}
{{- end }}
- name: CELERY_EXPORTER_STATE_FILE
  value: /var/lib/celery-exporter/state
{{- if or .Values.config .Values.brokers }}
- name: CELERY_EXPORTER_CONFIG_FILE
  value: /etc/celery-exporter/config/config.yml
{{- end }}
{{- if .Values.webConfig.existingSecret }}
- name: CELERY_EXPORTER_WEB_CONFIG_FILE
  value: /etc/celery-exporter/web/{{ .Values.webConfig.key }}
{{- end }}
{{- if gt (int .Values.shards) 1 }}
- name: SHARD
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
- name: CELERY_EXPORTER_SHARD
  value: $(SHARD)/{{ int64 .Values.shards }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "celery-exporter.volumeMounts" -}}
{{- if include "celery-exporter.mountsSecret" . }}
- name: broker-url
  mountPath: /run/secrets/celery-exporter
  readOnly: true
{{- end }}
- name: state
  mountPath: /var/lib/celery-exporter
{{- if or .Values.config .Values.brokers }}
- name: config
  mountPath: /etc/celery-exporter/config
  readOnly: true
{{- end }}
{{- if .Values.webConfig.existingSecret }}
- name: web-config
  mountPath: /etc/celery-exporter/web
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "celery-exporter.volumes" -}}
{{- if include "celery-exporter.mountsSecret" . }}
- name: broker-url
  secret:
    secretName: {{ include "celery-exporter.secretName" . | quote }}
    defaultMode: 0440
{{- end }}
{{- if not .Values.persistence.enabled }}
- name: state
  emptyDir:
    {{- toYaml .Values.persistence.emptyDir | nindent 4 }}
{{- end }}
{{- if or .Values.config .Values.brokers }}
- name: config
  configMap:
    name: {{ include "celery-exporter.fullname" . | quote }}
{{- end }}
{{- if .Values.webConfig.existingSecret }}
- name: web-config
  secret:
    secretName: {{ .Values.webConfig.existingSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "celery-exporter.container" -}}
name: {{ .Chart.Name }}
image: {{ include "celery-exporter.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.extraArgs }}
args:
  {{- toYaml . | nindent 2 }}
{{- end }}
env:
  {{- include "celery-exporter.env" . | trim | nindent 2 }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: metrics
    containerPort: 9808
    protocol: TCP
{{- range $kind := tuple "livenessProbe" "readinessProbe" "startupProbe" }}
{{- with index $.Values $kind }}
{{ $kind }}:
  {{- include "celery-exporter.probe" (tuple $ .) | nindent 2 }}
{{- end }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  {{- include "celery-exporter.volumeMounts" . | trim | nindent 2 }}
{{- end }}

{{/* Fields of the pod that are set from the value of the same name. */}}
{{- define "celery-exporter.podFields" -}}
{{- range $field := tuple "imagePullSecrets" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "hostAliases" "dnsPolicy" "dnsConfig" }}
{{- with index $.Values $field }}
{{ toYaml (dict $field .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The template of the pods, of a Deployment and of a StatefulSet. */}}
{{- define "celery-exporter.pod" -}}
metadata:
  labels:
    {{- include "celery-exporter.mergedLabels" (tuple . .Values.podLabels) | nindent 4 }}
  {{- if or .Values.config .Values.brokers .Values.podAnnotations }}
  annotations:
    {{- if or .Values.config .Values.brokers }}
    # Replaces the pods after a change of the configuration file.
    checksum/config: {{ include "celery-exporter.config" . | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: {{ include "celery-exporter.serviceAccountName" . | quote }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automountServiceAccountToken }}
  # With service links, Kubernetes sets CELERY_EXPORTER_PORT, the variable of an option, to tcp://…
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int64 .Values.terminationGracePeriodSeconds }}
  {{- with include "celery-exporter.podFields" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - {{ include "celery-exporter.container" . | nindent 6 | trim }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "celery-exporter.volumes" . | trim | nindent 4 }}
{{- end }}
