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

{{- /* The Secret of a login. Arguments: the root, the login. */ -}}
{{- define "nats.secret" -}}
{{- $root := index . 0 -}}
{{- $login := index . 1 -}}
{{- index $root.Values.auth (printf "%sSecret" $login) | default (printf "%s-%s" (include "nats.fullname" $root) $login) -}}
{{- end -}}

{{- /* The Secret of a producer. Arguments: the root, the producer. */ -}}
{{- define "nats.producerSecret" -}}
{{- $root := index . 0 -}}
{{- $producer := index . 1 -}}
{{- $producer.secretName | default (printf "%s-%s" (include "nats.fullname" $root) $producer.name) -}}
{{- end -}}

{{- /*
The password in a Secret. An upgrade keeps the password of the first installation.
Arguments: the root, the Secret's name.
*/ -}}
{{- define "nats.password" -}}
{{- $root := index . 0 -}}
{{- $known := lookup "v1" "Secret" $root.Release.Namespace (index . 1) | default dict -}}
{{- with dig "data" "password" "" $known -}}
{{- b64dec . -}}
{{- else -}}
{{- randAlphaNum 32 -}}
{{- end -}}
{{- end -}}

{{- /* The scheme of the servers' addresses. */ -}}
{{- define "nats.scheme" -}}{{ ternary "tls" "nats" (ne (include "nats.tlsSecret" .) "") }}{{- end -}}

{{- /* The Secret with the servers' certificate; empty without TLS. */ -}}
{{- define "nats.tlsSecret" -}}
{{- if .Values.tls.secretName -}}
{{- .Values.tls.secretName -}}
{{- else if .Values.tls.issuerRef -}}
{{- include "nats.fullname" . }}-tls
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

{{- /*
Refuses to change one server into three, or three into one. A single server deletes the streams of a
cluster after half a minute, and a cluster deletes the streams of a single server. This check fails
before anything changes. It also counts the volumes, which outlive `helm uninstall`. `helm template`
does not ask the cluster, so it finds neither servers nor volumes.
*/ -}}
{{- define "nats.refuseOtherCount" -}}
{{- $name := include "nats.fullname" . -}}
{{- $wanted := int .Values.replicas -}}
{{- $there := 0 -}}
{{- $servers := lookup "apps/v1" "StatefulSet" .Release.Namespace $name | default dict -}}
{{- $volume := lookup "v1" "PersistentVolumeClaim" .Release.Namespace (printf "data-%s-0" $name) | default dict -}}
{{- if $servers.spec -}}
{{- $there = int $servers.spec.replicas -}}
{{- else if $volume.spec -}}
{{- $second := lookup "v1" "PersistentVolumeClaim" .Release.Namespace (printf "data-%s-1" $name) | default dict -}}
{{- $there = ternary 3 1 (hasKey $second "spec") -}}
{{- end -}}
{{- if and $there (ne $there $wanted) -}}
{{- fail (printf "nats.replicas is %d, but %s in namespace %s has its data on %d: NATS would delete events, ledger and dead letters. Set nats.replicas=%d. For another number of servers, install a second release and drain this one (docs/operations.md, \"One NATS server or three\")" $wanted $name .Release.Namespace $there $there) -}}
{{- end -}}
{{- end -}}
