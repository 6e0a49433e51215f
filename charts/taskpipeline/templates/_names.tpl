{{- define "taskpipeline.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* The longest name that is built from it has 22 more characters. */ -}}
{{- define "taskpipeline.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "taskpipeline.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "taskpipeline.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /*
The labels that select the pods of a component. Never change them: selectors are immutable.
Arguments: the root, the component.
*/ -}}
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

{{- /* An image with its digest or tag. Arguments: the root, the values of the image. */ -}}
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
{{- required "nats.url: required with nats.enabled=false; set the URL of your NATS, such as nats://host:4222" .Values.nats.url -}}
{{- end -}}
{{- end -}}

{{- define "taskpipeline.natsAuthSecret" -}}
{{- if .Values.nats.enabled -}}
{{- .Values.nats.auth.processorSecret | default (printf "%s-processor" (include "taskpipeline.natsName" .)) -}}
{{- else -}}
{{- .Values.nats.authSecretName -}}
{{- end -}}
{{- end -}}

{{- /* The Secret with the certificate authority of the bundled servers; empty without TLS. */ -}}
{{- define "taskpipeline.natsCaSecret" -}}
{{- if .Values.nats.enabled }}{{ include "nats.tlsSecret" .Subcharts.nats }}{{ end -}}
{{- end -}}

{{- /* The login with which `helm test` publishes: that of the first producer. */ -}}
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
