{{- define "nats.fullname" -}}
{{- printf "%s-nats" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "nats.selector" -}}
app.kubernetes.io/name: nats
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: nats-server
{{- end -}}

{{- define "nats.labels" -}}
{{ include "nats.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* The Secret of a login. Arguments: the root, which login. */ -}}
{{- define "nats.secret" -}}
{{- $root := index . 0 -}}
{{- $login := index . 1 -}}
{{- index $root.Values.auth (printf "%sSecret" $login) | default (printf "%s-%s" (include "nats.fullname" $root) $login) -}}
{{- end -}}

{{- /* The password of a login: what was made at the first installation stays. Arguments: the root, which login. */ -}}
{{- define "nats.password" -}}
{{- $root := index . 0 -}}
{{- $known := lookup "v1" "Secret" $root.Release.Namespace (include "nats.secret" .) | default dict -}}
{{- with dig "data" "password" "" $known -}}
{{- b64dec . -}}
{{- else -}}
{{- randAlphaNum 32 -}}
{{- end -}}
{{- end -}}

{{- define "nats.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "nats.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}
