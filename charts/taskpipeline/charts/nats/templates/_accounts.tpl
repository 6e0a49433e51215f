{{- /*
The logins and their rights.

NATS does not check reply subjects, and JetStream sends its acks to them. A producer in the account
of the streams could direct acks to the ledger, to the dead letters, or to a replica that waits for
another answer. If a producer has an account of its own, its reply subjects are subjects of that
account. Only the subjects of the events lead out of the account.
*/ -}}

{{- /* The account that owns the streams. */ -}}
{{- define "nats.account" -}}taskpipeline{{- end -}}

{{- /* The subjects of the events, as JSON. */ -}}
{{- define "nats.subjects" -}}
{{- $subjects := list -}}
{{- range $pipeline := .Values.pipelines -}}
{{- range $event := list "created" "updated" "deleted" -}}
{{- $subjects = append $subjects (printf "%s.%s" $pipeline.subjectPrefix $event) -}}
{{- end -}}
{{- end -}}
{{- uniq $subjects | toJson -}}
{{- end -}}

{{- /*
Whether each producer has an account of its own: "true" or nothing. An upgrade keeps the single
account of an earlier release, because NATS stores streams by account. `helm template` does not ask
the cluster, so it finds no earlier release.
*/ -}}
{{- define "nats.isolates" -}}
{{- $said := toString .Values.auth.isolateProducers -}}
{{- if eq $said "auto" -}}
{{- $there := lookup "v1" "ConfigMap" .Release.Namespace (include "nats.fullname" .) | default dict -}}
{{- $config := dig "data" "nats.conf" "" $there -}}
{{- if or (not $config) (contains "accounts {" $config) -}}true{{- end -}}
{{- else if eq $said "true" -}}true{{- end -}}
{{- end -}}

{{- /* The environment variable with a login's password. */ -}}
{{- define "nats.variable" -}}
{{- printf "%s_PASSWORD" (upper . | replace "-" "_") -}}
{{- end -}}

{{- /* The NATS user of a producer. Arguments: the root, the producer's name. */ -}}
{{- define "nats.producer" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{
  user: {{ $name }}
  password: ${{ include "nats.variable" $name }}
  permissions: {
    publish: { allow: {{ include "nats.subjects" $root }} }
    # JetStream answers a publish on these subjects.
    subscribe: { allow: ["_INBOX.>"] }
  }
}
{{- end -}}

{{- /* The NATS user of the processor. */ -}}
{{- define "nats.processor" -}}
{
  # NATS denies everything else. Examples: deleting a stream, purging the ledger.
  user: processor
  password: $PROCESSOR_PASSWORD
  permissions: {
    publish: {
      allow: [
        "_INBOX_PROCESSOR.>"
        "$JS.API.INFO"
        {{- range $pipeline := .Values.pipelines }}
        {{- $ledger := printf "%s--%s" $pipeline.stream $pipeline.queueGroup }}
        {{- $letters := printf "%s-DEAD-LETTERS" $pipeline.stream }}
        {{- range $stream := list $pipeline.stream (printf "KV_%s" $ledger) $letters }}
        "$JS.API.STREAM.CREATE.{{ $stream }}"
        # Sets the limit of the stream after an edit of spec.delivery.room.
        "$JS.API.STREAM.UPDATE.{{ $stream }}"
        "$JS.API.STREAM.INFO.{{ $stream }}"
        "$JS.API.STREAM.MSG.GET.{{ $stream }}"
        "$JS.API.DIRECT.GET.{{ $stream }}"
        "$JS.API.DIRECT.GET.{{ $stream }}.>"
        "$JS.API.CONSUMER.CREATE.{{ $stream }}"
        "$JS.API.CONSUMER.CREATE.{{ $stream }}.>"
        "$JS.API.CONSUMER.DURABLE.CREATE.{{ $stream }}.*"
        "$JS.API.CONSUMER.INFO.{{ $stream }}.*"
        "$JS.API.CONSUMER.NAMES.{{ $stream }}"
        "$JS.API.CONSUMER.DELETE.{{ $stream }}.*"
        "$JS.API.CONSUMER.MSG.NEXT.{{ $stream }}.*"
        "$JS.ACK.{{ $stream }}.>"
        {{- end }}
        # Purges events that are in the ledger when they use half of the stream's room.
        "$JS.API.STREAM.PURGE.{{ $pipeline.stream }}"
        # Deletes a dead letter after a replay or a drop.
        "$JS.API.STREAM.MSG.DELETE.{{ $letters }}"
        "$KV.{{ $ledger }}.>"
        "dead-letters.{{ $pipeline.subjectPrefix }}"
        {{- end }}
        # Publishes replayed dead letters.
        {{- range include "nats.subjects" . | fromJsonArray }}
        "{{ . }}"
        {{- end }}
      ]
    }
    subscribe: {
      allow: [
        "_INBOX_PROCESSOR.>"
        # Mode Core: one subscription in the queue group, which keeps the order of all events.
        {{- range $pipeline := .Values.pipelines }}
        "{{ $pipeline.subjectPrefix }}.* {{ $pipeline.queueGroup }}"
        {{- end }}
      ]
    }
  }
}
{{- end -}}
