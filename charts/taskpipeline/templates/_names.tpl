{{- define "taskpipeline.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* The longest name made of it has 22 characters more. */ -}}
{{- define "taskpipeline.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "taskpipeline.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "taskpipeline.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What selects pods of a component; never changed. Arguments: the root, the component. */ -}}
{{- define "taskpipeline.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "taskpipeline.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "taskpipeline.labels" -}}
{{- $root := index . 0 -}}
{{ include "taskpipeline.selector" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Arguments: the root, the values of an image. */ -}}
{{- define "taskpipeline.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "taskpipeline.kvSecret" -}}
{{- .Values.kv.secretName | default (printf "%s-kv" (include "taskpipeline.fullname" .)) -}}
{{- end -}}

{{- define "taskpipeline.natsName" -}}
{{- printf "%s-nats" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "taskpipeline.natsUrl" -}}
{{- if .Values.nats.enabled -}}
{{- printf "%s://%s:4222" (include "nats.scheme" .Subcharts.nats) (include "taskpipeline.natsName" .) -}}
{{- else -}}
{{- required "nats.url: with nats.enabled=false, say where your NATS is" .Values.nats.url -}}
{{- end -}}
{{- end -}}

{{- define "taskpipeline.natsAuthSecret" -}}
{{- if .Values.nats.enabled -}}
{{- .Values.nats.auth.processorSecret | default (printf "%s-processor" (include "taskpipeline.natsName" .)) -}}
{{- else -}}
{{- .Values.nats.authSecretName -}}
{{- end -}}
{{- end -}}

{{- /* The Secret with the authority of the bundled servers' certificates, where they have some. */ -}}
{{- define "taskpipeline.natsCaSecret" -}}
{{- if .Values.nats.enabled }}{{ include "nats.tlsSecret" .Subcharts.nats }}{{ end -}}
{{- end -}}

{{- /* The login that `helm test` publishes by: the first. */ -}}
{{- define "taskpipeline.natsProducer" -}}
{{- (first .Values.nats.auth.producers).name -}}
{{- end -}}

{{- define "taskpipeline.natsProducerSecret" -}}
{{- $producer := first .Values.nats.auth.producers -}}
{{- $producer.secretName | default (printf "%s-%s" (include "taskpipeline.natsName" .) $producer.name) -}}
{{- end -}}

{{- define "taskpipeline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "taskpipeline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}
