//! The TaskPipeline resource: its fields with units and defaults, and the rules for invalid values. `cargo xtask generate`
//! writes the CRD from this module, so `kubectl explain` shows these comments. The module does not know how the operator
//! carries out a pipeline.

// KubeSchema derives a private copy of each type, so its `pub` is unreachable.
#![allow(unreachable_pub)]
// The attributes of columns repeat, and `kubectl explain` shows these comments without rendering markdown.
#![allow(clippy::duplicated_attributes, clippy::doc_markdown)]

mod duration;
mod settings;
mod size;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use duration::Span;
pub use settings::SpecError;
pub use size::Bytes;
pub(crate) use status::NewCondition;
pub use status::{ConditionType, PROCESSOR_MANAGER, TaskPipelineStatus};

/// A pipeline that takes task events from NATS and writes the tasks to Cloudflare KV, with replicas in one queue group.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "taskpipeline.dev",
    version = "v1alpha1",
    kind = "TaskPipeline",
    namespaced,
    status = "TaskPipelineStatus",
    shortname = "tp",
    category = "all",
    cel,
    derive = "PartialEq",
    doc = "A pipeline that takes task events from NATS and writes the tasks to Cloudflare KV.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Replicas",
        type_ = "string",
        json_path = ".status.ready",
        description = "Ready replicas and wanted replicas"
    ),
    printcolumn(
        name = "Caught-Up",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="CaughtUp")].status"#
    ),
    printcolumn(
        name = "Degraded",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Degraded")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.delivery.mode", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    cel,
    validation = Rule::new(
        "self.delivery.mode == 'Durable' || !has(self.delivery.stream)"
    ).message("delivery.stream has no meaning in mode Core, which has no stream: remove the field, or use mode Durable"),
    validation = Rule::new(
        "self.delivery.mode == 'Durable' || !has(self.delivery.room)"
    ).message("delivery.room has no meaning in mode Core, which has no streams: remove the field, or use mode Durable"),
    validation = Rule::new(
        "self.delivery.mode == oldSelf.delivery.mode"
    ).message("delivery.mode cannot be changed, because events would be lost or written twice: delete the pipeline and \
               create another"),
    validation = Rule::new(
        "has(self.delivery.stream) == has(oldSelf.delivery.stream) && (!has(self.delivery.stream) || self.delivery.stream \
         == oldSelf.delivery.stream)"
    ).message("delivery.stream cannot be changed, because the ledger belongs to the stream: delete the pipeline and \
               create another"),
    validation = Rule::new(
        "self.nats.subjectPrefix == oldSelf.nats.subjectPrefix && self.nats.queueGroup == oldSelf.nats.queueGroup"
    ).message("nats.subjectPrefix and nats.queueGroup cannot be changed, because the stream and the ledger are named \
               after them: delete the pipeline and create another"),
    validation = Rule::new(
        "self.delivery.mode == 'Core' || duration(self.kv.requestTimeout) + duration(self.kv.requestTimeout) + \
         duration(self.kv.requestTimeout) <= duration(self.kv.settleAfter)"
    ).message("kv.requestTimeout must be at most a third of kv.settleAfter: shorten kv.requestTimeout or lengthen \
               kv.settleAfter; a later request could permanently overwrite a newer task with an older one"),
    validation = Rule::new(
        "!has(self.delivery.stream) || duration(self.delivery.stream.maxAge) > duration(self.kv.settleAfter)"
    ).message("delivery.stream.maxAge must be longer than kv.settleAfter: tombstones live for about maxAge, and must \
               outlive the requests that could undo a delete")
)]
#[serde(rename_all = "camelCase")]
pub struct TaskPipelineSpec {
    /// How many replicas run. The operator enforces a count that you set here or by `kubectl scale taskpipeline`. Without it,
    /// the operator starts 2 replicas, and then keeps the count that `kubectl scale deployment` or an autoscaler on the
    /// Deployment sets. If you remove the field, the count stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 1000").message("replicas must be 0 to 1000"))]
    pub replicas: Option<i32>,
    /// The NATS servers and the subjects of the events.
    pub nats: Nats,
    /// How events are delivered. Default: nothing is lost (mode Durable).
    #[serde(default)]
    pub delivery: Delivery,
    /// Cloudflare KV, and how replicas write to it. All changes except those of secretRef and settleAfter take effect in
    /// running replicas.
    pub kv: Kv,
    /// When a failed write is retried. A change takes effect in running replicas, even for attempts that wait already.
    #[serde(default)]
    pub retry: Retry,
    /// If true, no replica runs. Events wait in the stream; in mode Core they are lost. Default: false.
    #[serde(default)]
    pub suspend: bool,
    /// The settings of the replicas' pods. A change rolls the pods.
    #[serde(default)]
    pub processor: Processor,
}

/// The NATS servers and the subjects of the events.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Nats {
    /// The addresses of one or more servers, separated by commas, such as `nats://host:4222`. One `tls://` address makes TLS
    /// mandatory for all servers. For websockets, use `ws://host:8080` or `wss://host`. Put the user and the password into the
    /// Secret of `authSecretRef`, not into the addresses.
    #[x_kube(
        validation = Rule::new("self.matches('^(nats|tls|ws|wss)://[^,]*(,(nats|tls|ws|wss)://[^,]*)*$')")
            .message("url must be one or more addresses such as nats://host:4222, separated by commas; the schemes are \
                      nats, tls, ws and wss"),
        validation = Rule::new("self.matches('^((nats|tls)://[^,]*(,(nats|tls)://[^,]*)*|ws://[^,]*(,ws://[^,]*)*|wss://[^,]*(,wss://[^,]*)*)$')")
            .message("url must have only nats:// and tls://, or only ws://, or only wss:// addresses: encrypted \
                      connections must not fall back to plain ones"),
        validation = Rule::new("!self.contains('@')")
            .message("url must not contain a user or a password: put them into the Secret of nats.authSecretRef"),
        validation = Rule::new(r"self.matches('^([a-z]+://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?/?(,|$))+$')")
            .message("url must name a host and, unless it is 4222, a port; nothing else is allowed")
    )]
    // The length bounds the cost of the rules, which the API server estimates beforehand.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// The Secret with the login for NATS. It has `user` and `password`, or `token`, or `creds` (the text of a .creds file), or
    /// `nkey` (the seed of an NKey). Its key `hosts` lists the hosts of `url` that may receive the login, separated by commas:
    /// `host`, or with a scheme and a port `tls://host:4222`. Its key `pipelines` lists the pipelines that may use the Secret.
    /// Without that key, only the oldest pipeline that refers to it may. Optional keys: `ca.crt` is your own certificate
    /// authority. `tls.crt` and `tls.key` are for servers that require a client certificate. `tlsFirst` (true) is for servers
    /// that begin with TLS (handshake_first). `inboxPrefix` is for a user that may receive answers only under that prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretRef>,
    /// The Secret whose `ca.crt` verifies the servers' certificates, as cert-manager creates it. Replicas receive no other key
    /// of the Secret. It replaces the `ca.crt` of `authSecretRef`. Default: the authorities that the image knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
    /// The prefix of the subjects: events arrive on `{subjectPrefix}.created`, `.updated` and `.deleted`. Default: tasks.
    #[serde(default = "defaults::subject_prefix")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$')")
        .message("subjectPrefix must be tokens of letters, digits, _ and -, separated by single dots"))]
    #[schemars(length(max = 128))]
    pub subject_prefix: String,
    /// The queue group of the replicas. NATS gives each event to one of them. The consumer and the ledger are named after it.
    /// Default: tasks-processor.
    #[serde(default = "defaults::queue_group")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*$')")
        .message("queueGroup must consist of letters, digits, _ and single - between them"))]
    #[schemars(length(max = 64))]
    pub queue_group: String,
}

/// A Secret in the pipeline's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    /// The name of the Secret.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("name must be the name of a Secret: lowercase letters, digits, - and ."))]
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How events are delivered.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// In mode Durable, a JetStream stream keeps each event until it is in the ledger, and nothing is lost. Mode Core uses NATS
    /// core and delivers at most once. You cannot change the mode later. Default: Durable.
    #[serde(default)]
    pub mode: Mode,
    /// The stream of mode Durable. Replicas create a missing stream. You cannot change this field later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// How much room each stream of mode Durable may use on each server that stores it. No stream uses another stream's room.
    /// A change rolls the pods, and the replicas change the streams that the pipeline created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
}

/// How events are delivered.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is lost.
    #[default]
    Durable,
    /// At most once.
    Core,
}

/// The stream that captures events.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Stream {
    /// The name of the stream. Default: TASKS.
    #[serde(default = "defaults::stream")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*$')")
        .message("stream.name must consist of letters, digits, _ and single - between them"))]
    #[schemars(length(max = 64))]
    pub name: String,
    /// How many servers store the stream and the ledger, if replicas create them: 1, 3 or 5. Default: 1.
    #[serde(default = "defaults::stream_replicas")]
    #[x_kube(validation = Rule::new("self in [1, 3, 5]").message("stream.replicas must be 1, 3 or 5"))]
    pub replicas: i32,
    /// How long an event may wait to be taken in, if replicas create the stream. Default: 72h.
    #[serde(default = "defaults::max_age")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('87600h')").message("stream.maxAge must be 1m to 87600h: tombstones live for about maxAge, and must outlive the requests that could undo a delete"))]
    pub max_age: Span,
    /// The largest event in bytes, with its headers, if replicas create the stream. NATS refuses larger events: a JetStream
    /// publisher gets an error, and a plain publisher gets none. Default: 65536.
    #[serde(default = "defaults::max_event_bytes")]
    #[x_kube(validation = Rule::new("self >= 1024 && self <= 67108864").message("stream.maxEventBytes must be 1024 to \
         67108864 (64 MiB, the most that NATS allows)"))]
    pub max_event_bytes: i32,
}

/// How much room the streams may use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    /// The room of the events. When events that are in the ledger use half of it, replicas purge the oldest. The rest is for
    /// events that wait, about 3,000 per MiB. Default: 4Gi when the stream is made, or less where NATS has less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Bytes>,
    /// The room of the ledger. Each task needs about 0.6 KiB plus its description. Default: 2Gi when it is made, or less where
    /// NATS has less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<Bytes>,
    /// The room of the dead letters. Default: 256Mi when their stream is made, or less where NATS has less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<Bytes>,
}

/// Cloudflare KV, and how replicas write to it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Kv {
    /// The Secret with `CF_ACCOUNT_ID`, `CF_NAMESPACE_ID` and `CF_API_TOKEN`. The token needs the permission Workers KV Storage:
    /// Edit. To use another address than Cloudflare's, set `CF_API_BASE_URL` in the same Secret. The key `pipelines` lists the
    /// pipelines that may use the Secret, separated by commas, or `*`. Without that key, only the oldest pipeline that refers to
    /// it may.
    pub secret_ref: SecretRef,
    /// How many requests the whole pipeline may send, for any number of replicas.
    #[serde(default)]
    pub request_budget: RequestBudget,
    /// The timeout of a request, at most a third of settleAfter. Default: 10s.
    #[serde(default = "defaults::request_timeout")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= \
                                     duration('5m')").message("requestTimeout must be more than 0s and at most 5m"))]
    pub request_timeout: Span,
    /// How long a sent request may still take effect at Cloudflare. After this time, the writer writes each task in doubt again.
    /// Must be at least three times requestTimeout. A change rolls the pods. Default: 30s.
    #[serde(default = "defaults::settle_after")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= \
                                     duration('1h')").message("settleAfter must be 1s to 1h"))]
    pub settle_after: Span,
    /// The least time between two writes of one task. A longer time saves money, because Cloudflare bills every written key ($5
    /// per million). Cloudflare accepts about one write per second of a key. Default: 1s.
    #[serde(default = "defaults::min_write_interval")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("minWriteInterval must be at most 24h"))]
    pub min_write_interval: Span,
    /// The size of a bulk write.
    #[serde(default)]
    pub batch: Batch,
}

/// How many requests may be sent in a period.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RequestBudget {
    /// The most requests in any window of one period. Default: 1100, which is Cloudflare's 1,200 in 5 minutes less a margin.
    #[serde(default = "defaults::requests")]
    #[x_kube(validation = Rule::new("self >= 1").message("requestBudget.requests must be at least 1, because a pipeline \
                                                          without requests never writes; to stop it, set `suspend: true`"))]
    pub requests: i32,
    /// The period of the budget. Default: 5m.
    #[serde(default = "defaults::period")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= \
                                     duration('87600h')").message("requestBudget.period must be 1s to 87600h"))]
    pub period: Span,
}

/// The size of a bulk write.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// The most keys of a bulk write. Writes begin with 1,000 keys and adapt to the answers of KV. Default: 10000, the most that
    /// Cloudflare allows.
    #[serde(default = "defaults::max_keys")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 10000").message("batch.maxKeys must be 1 to 10000, the most \
         that Cloudflare allows"))]
    pub max_keys: i32,
}

/// When a failed write is retried.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// The number of attempts for a write, including the first. After the last attempt, the task waits for the longest delay
    /// and starts again (Durable), or becomes a dead letter (Core). Default: 5.
    #[serde(default = "defaults::max_attempts")]
    #[x_kube(validation = Rule::new("self >= 1").message("retry.maxAttempts must be at least 1, because the first attempt \
                                                          counts"))]
    pub max_attempts: i32,
    /// The delays before attempts 2, 3 and so on. The last delay also applies to all later attempts. A random part of up to a
    /// tenth is added to each. Default: 1s, 3s, 10s, 20s, 30s.
    #[serde(default = "defaults::delays")]
    #[x_kube(
        validation = Rule::new("self.size() > 0").message("retry.delays must contain at least one delay"),
        validation = Rule::new("self.all(delay, duration(delay) <= duration('87600h'))").message("retry.delays must each be at most 87600h")
    )]
    #[schemars(length(max = 20))]
    pub delays: Vec<Span>,
}

/// The settings of the replicas' pods. The set is closed, so that the right to create pipelines does not allow arbitrary pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Processor {
    /// CPU and memory of a pod. Default: requests of 100m and 128Mi, a limit of 256Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// The node labels that the pods require.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// The taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// The affinity of the pods. Default: spread over nodes and zones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// The PriorityClass of the pods. The operator must allow it (the chart's operator.allow.priorityClasses). Default: the
    /// cluster's default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')")
        .message("priorityClassName must be the name of a PriorityClass: lowercase letters, digits, - and ."))]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Additional labels of the pods. The operator must allow them, and they cannot replace the operator's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Additional annotations of the pods. The operator must allow them, and they cannot replace the operator's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// Additional environment variables with literal values: RUST_LOG, LOG_FORMAT, SHUTDOWN_GRACE, ACK_WAIT.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(name, name in ['RUST_LOG', 'LOG_FORMAT', 'SHUTDOWN_GRACE', 'ACK_WAIT'])")
        .message("env may set only RUST_LOG, LOG_FORMAT, SHUTDOWN_GRACE and ACK_WAIT; the resource has fields for all \
                  other settings"))]
    #[schemars(extend("maxProperties" = 16))]
    pub env: BTreeMap<String, String>,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            name: defaults::stream(),
            replicas: defaults::stream_replicas(),
            max_age: defaults::max_age(),
            max_event_bytes: defaults::max_event_bytes(),
        }
    }
}

impl Default for RequestBudget {
    fn default() -> Self {
        Self { requests: defaults::requests(), period: defaults::period() }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self { max_keys: defaults::max_keys() }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: defaults::max_attempts(), delays: defaults::delays() }
    }
}

/// The defaults of the CRD, which are those of the pipeline.
mod defaults {
    use taskpipeline_pipeline::settings::{DurableSettings, EventSettings, Tuning};

    use super::Span;

    pub(super) fn subject_prefix() -> String {
        EventSettings::default().subject_prefix
    }

    pub(super) fn queue_group() -> String {
        EventSettings::default().queue_group
    }

    pub(super) fn stream() -> String {
        DurableSettings::default().stream
    }

    pub(super) fn stream_replicas() -> i32 {
        number(DurableSettings::default().replicas)
    }

    pub(super) fn max_age() -> Span {
        DurableSettings::default().max_age.into()
    }

    pub(super) fn max_event_bytes() -> i32 {
        DurableSettings::default().max_event_bytes
    }

    pub(super) fn requests() -> i32 {
        number(Tuning::default().request_budget.requests.get())
    }

    pub(super) fn period() -> Span {
        Tuning::default().request_budget.period.into()
    }

    pub(super) fn request_timeout() -> Span {
        Tuning::default().request_timeout.into()
    }

    pub(super) fn settle_after() -> Span {
        DurableSettings::default().settle_after.into()
    }

    pub(super) fn min_write_interval() -> Span {
        Tuning::default().min_write_interval.into()
    }

    pub(super) fn max_keys() -> i32 {
        Tuning::default().max_keys.get().into()
    }

    pub(super) fn max_attempts() -> i32 {
        number(Tuning::default().retry.max_attempts.get())
    }

    pub(super) fn delays() -> Vec<Span> {
        Tuning::default().retry.delays.into_iter().map(Span::from).collect()
    }

    /// Converts a default to the number type of the CRD. No default exceeds its range.
    fn number(number: impl TryInto<i32>) -> i32 {
        number.try_into().unwrap_or(i32::MAX)
    }
}
