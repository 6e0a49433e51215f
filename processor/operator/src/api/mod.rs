//! The TaskPipeline resource: what may be asked for, with units and defaults, and what cannot work. The CRD is
//! generated from here, so these comments are what `kubectl explain` says. Knows nothing of how it is carried out.

// KubeSchema derives a private copy of each type, whose `pub` nobody can reach.
#![allow(unreachable_pub)]
// Columns are alike; and `kubectl explain` shows these comments as they are.
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
pub(crate) use status::Said;
pub use status::{ConditionType, PROCESSOR_MANAGER, TaskPipelineStatus};

/// Task events from NATS to Cloudflare KV, processed by replicas that share a queue group.
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
        description = "Ready replicas of those wanted"
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
    ).message("delivery.stream has no meaning in mode Core, which has no stream: remove it, or use mode Durable"),
    validation = Rule::new(
        "self.delivery.mode == 'Durable' || !has(self.delivery.room)"
    ).message("delivery.room has no meaning in mode Core, which has no streams: remove it, or use mode Durable"),
    validation = Rule::new(
        "self.delivery.mode == oldSelf.delivery.mode"
    ).message("delivery.mode cannot be changed while the pipeline lives: events would be lost or written twice; delete it and create another"),
    validation = Rule::new(
        "has(self.delivery.stream) == has(oldSelf.delivery.stream) && (!has(self.delivery.stream) || self.delivery.stream == oldSelf.delivery.stream)"
    ).message("delivery.stream cannot be changed while the pipeline lives: its ledger belongs to its stream; delete the pipeline and create another"),
    validation = Rule::new(
        "self.nats.subjectPrefix == oldSelf.nats.subjectPrefix && self.nats.queueGroup == oldSelf.nats.queueGroup"
    ).message("nats.subjectPrefix and nats.queueGroup cannot be changed while the pipeline lives: its stream and its ledger are named after them; delete the pipeline and create another"),
    validation = Rule::new(
        "self.delivery.mode == 'Core' || duration(self.kv.requestTimeout) + duration(self.kv.requestTimeout) + duration(self.kv.requestTimeout) <= duration(self.kv.settleAfter)"
    ).message("kv.requestTimeout must be at most a third of kv.settleAfter: a request that takes effect later could put an old task over a newer one permanently; make it shorter, or kv.settleAfter longer"),
    validation = Rule::new(
        "!has(self.delivery.stream) || duration(self.delivery.stream.maxAge) > duration(self.kv.settleAfter)"
    ).message("delivery.stream.maxAge must be longer than kv.settleAfter: deletes are remembered for about as long, and have to outlive the requests that could undo them")
)]
#[serde(rename_all = "camelCase")]
pub struct TaskPipelineSpec {
    /// How many replicas run. Absent: 2 at first, and from then on whatever `kubectl scale deployment` or an autoscaler on
    /// the Deployment says. Present, also by `kubectl scale taskpipeline`: enforced. Removed again: the count stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 1000").message("replicas must be 0 to 1000"))]
    pub replicas: Option<i32>,
    /// Where events come from.
    pub nats: Nats,
    /// What is promised about events. Default: nothing is lost (mode Durable).
    #[serde(default)]
    pub delivery: Delivery,
    /// Where tasks go. Everything in here but the Secret and settleAfter takes effect in running replicas.
    pub kv: Kv,
    /// When a failed write is tried again. Takes effect in running replicas, also for attempts that wait already.
    #[serde(default)]
    pub retry: Retry,
    /// True: no replica runs, and events wait in the stream (in mode Core they are lost). Default: false.
    #[serde(default)]
    pub suspend: bool,
    /// How the replicas' pods are run. A change rolls them.
    #[serde(default)]
    pub processor: Processor,
}

/// Where events come from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Nats {
    /// The address of one or more servers, separated by commas: `nats://host:4222`, or `tls://` where TLS is a must (one of
    /// them makes it a must for all), or `ws://host:8080` or `wss://host` for websockets. No
    /// user and no password in it; they belong into the Secret of `authSecretRef`.
    #[x_kube(
        validation = Rule::new("self.matches('^(nats|tls|ws|wss)://[^,]*(,(nats|tls|ws|wss)://[^,]*)*$')")
            .message("url must be one or more addresses such as nats://host:4222, separated by commas; the schemes are nats, tls, ws and wss"),
        validation = Rule::new("self.matches('^((nats|tls)://[^,]*(,(nats|tls)://[^,]*)*|ws://[^,]*(,ws://[^,]*)*|wss://[^,]*(,wss://[^,]*)*)$')")
            .message("url must have either nats:// and tls://, or ws://, or wss:// addresses only: a scheme that promises encryption must not fall back to one that does not"),
        validation = Rule::new("!self.contains('@')")
            .message("url must hold no user or password: put them into the Secret of nats.authSecretRef"),
        validation = Rule::new(r"self.matches('^([a-z]+://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?/?(,|$))+$')")
            .message("url must name a host and, if not 4222, a port, and nothing else")
    )]
    // Its length bounds what the rules cost, which the API server wants to know beforehand.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// The Secret to log in to NATS by: `user` and `password`, or `token`, or `creds` (the text of a .creds file), or `nkey`
    /// (the seed of an NKey); `ca.crt` for a server certificate of your own, `tls.crt` and `tls.key` where servers ask for a
    /// certificate, `tlsFirst` (true) where they begin with TLS (handshake_first), and `inboxPrefix` where its user may get
    /// answers only there. It must say in `hosts` (separated by commas) to which of the hosts in `url` it may be sent: `host`, or
    /// with a scheme and a port `tls://host:4222`. Its key `pipelines` says which pipelines may use it; without, the first may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretRef>,
    /// A Secret whose `ca.crt` the servers' certificates are checked against, such as cert-manager makes it; nothing else in it
    /// gets to the replicas. It takes the place of the `ca.crt` of `authSecretRef`. Default: the authorities that the image knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
    /// Events come on `{subjectPrefix}.created`, `.updated` and `.deleted`. Default: tasks.
    #[serde(default = "defaults::subject_prefix")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$')")
        .message("subjectPrefix must be tokens of letters, digits, _ and -, separated by single dots"))]
    #[schemars(length(max = 128))]
    pub subject_prefix: String,
    /// Each event goes to one of the replicas that share this name; the consumer and the ledger are named after it.
    /// Default: tasks-processor.
    #[serde(default = "defaults::queue_group")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*$')")
        .message("queueGroup must be made of letters, digits, _ and single - between them"))]
    #[schemars(length(max = 64))]
    pub queue_group: String,
}

/// A Secret in the pipeline's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    /// Its name.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("name must be a Secret's name: lower case letters, digits, - and ."))]
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What is promised about events.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Durable: events are kept in a JetStream stream until they are in the ledger, and nothing is lost. Core: NATS core,
    /// at most once. It cannot be changed later. Default: Durable.
    #[serde(default)]
    pub mode: Mode,
    /// The stream of mode Durable; made if it is missing. It cannot be changed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// How much room each stream of mode Durable may take up on each server that keeps it; none takes another's. It is
    /// changed in streams that the pipeline has made; a change rolls the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
}

/// What is promised about events.
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
    /// Its name. Default: TASKS.
    #[serde(default = "defaults::stream")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*$')")
        .message("stream.name must be made of letters, digits, _ and single - between them"))]
    #[schemars(length(max = 64))]
    pub name: String,
    /// On how many servers it is kept, and the ledger with it, if they are made: 1, 3 or 5. Default: 1.
    #[serde(default = "defaults::stream_replicas")]
    #[x_kube(validation = Rule::new("self in [1, 3, 5]").message("stream.replicas must be 1, 3 or 5"))]
    pub replicas: i32,
    /// How long an event may wait to be taken in, if the stream is made. Default: 72h.
    #[serde(default = "defaults::max_age")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('87600h')").message("stream.maxAge must be 1m to 87600h: deletes are remembered for about as long, and have to outlive the requests that could undo them"))]
    pub max_age: Span,
    /// The largest event in bytes, with its headers, if the stream is made. A larger one is refused: a JetStream publisher gets
    /// an error, a plain publisher hears nothing. Default: 65536.
    #[serde(default = "defaults::max_event_bytes")]
    #[x_kube(validation = Rule::new("self >= 1024 && self <= 67108864").message("stream.maxEventBytes must be 1024 to 67108864 (64 MiB, the most that NATS allows)"))]
    pub max_event_bytes: i32,
}

/// How much room the streams may take up.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    /// Of events. Those that are in the ledger are dropped, the oldest first, when they take up half of it; the rest is for
    /// events that wait, about 3,000 a MiB. Default: 4Gi when the stream is made, or less where NATS has less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Bytes>,
    /// Of the ledger, which has a record of about 0.6 KiB, and its description, for each task. Default: 2Gi when it is made,
    /// or less where NATS has less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<Bytes>,
    /// Of dead letters. Default: 256Mi when their stream is made, or less where NATS has less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<Bytes>,
}

/// Where tasks go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Kv {
    /// The Secret with `CF_ACCOUNT_ID`, `CF_NAMESPACE_ID` and `CF_API_TOKEN`, whose token needs the permission Workers KV
    /// Storage: Edit. `CF_API_BASE_URL`, for another address than Cloudflare's, may stand only there.
    /// Its key `pipelines` says which pipelines may use it, separated by commas, or `*`; without, the first may.
    pub secret_ref: SecretRef,
    /// How many requests the whole pipeline may make, however many replicas it has.
    #[serde(default)]
    pub request_budget: RequestBudget,
    /// How long one request may take; at most a third of settleAfter. Default: 10s.
    #[serde(default = "defaults::request_timeout")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('5m')").message("requestTimeout must be more than 0s and at most 5m"))]
    pub request_timeout: Span,
    /// How long after it was sent a request may still take effect at Cloudflare's: what is in doubt is written again then.
    /// At least three times requestTimeout. A change rolls the pods. Default: 30s.
    #[serde(default = "defaults::settle_after")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("settleAfter must be 1s to 1h"))]
    pub settle_after: Span,
    /// The least time between two writes of one task. Longer saves money: Cloudflare bills every key written ($5 a million),
    /// and takes about one write a second of a key. Default: 1s.
    #[serde(default = "defaults::min_write_interval")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("minWriteInterval must be at most 24h"))]
    pub min_write_interval: Span,
    /// How many keys a bulk write has.
    #[serde(default)]
    pub batch: Batch,
}

/// How many requests may be made in a time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RequestBudget {
    /// So many requests in each period, at any time. Default: 1100, which is Cloudflare's 1,200 in 5 minutes less a margin.
    #[serde(default = "defaults::requests")]
    #[x_kube(validation = Rule::new("self >= 1").message("requestBudget.requests must be at least 1: with none, nothing could ever be written; `suspend: true` stops a pipeline"))]
    pub requests: i32,
    /// Default: 5m.
    #[serde(default = "defaults::period")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('87600h')").message("requestBudget.period must be 1s to 87600h"))]
    pub period: Span,
}

/// How many keys a bulk write has.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// The most keys. It begins with 1,000, and adapts to what KV takes. Default: 10000, the most that Cloudflare allows.
    #[serde(default = "defaults::max_keys")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 10000").message("batch.maxKeys must be 1 to 10000, the most that Cloudflare takes"))]
    pub max_keys: i32,
}

/// When a failed write is tried again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How often a write is tried in all, the first time included. When they are used up the task waits for the longest
    /// delay and is tried anew (Durable), or becomes a dead letter (Core). Default: 5.
    #[serde(default = "defaults::max_attempts")]
    #[x_kube(validation = Rule::new("self >= 1").message("retry.maxAttempts must be at least 1: the first attempt counts too"))]
    pub max_attempts: i32,
    /// The delays before attempts 2, 3 and so on; the last one stands for all later attempts too. A tenth of it at the most
    /// is added by chance. Default: 1s, 3s, 10s, 20s, 30s.
    #[serde(default = "defaults::delays")]
    #[x_kube(
        validation = Rule::new("self.size() > 0").message("retry.delays must hold at least one delay"),
        validation = Rule::new("self.all(delay, duration(delay) <= duration('87600h'))").message("retry.delays must each be at most 87600h")
    )]
    #[schemars(length(max = 20))]
    pub delays: Vec<Span>,
}

/// How the replicas' pods are run. A closed set: whoever may create a pipeline gets pods of ours and nothing else.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Processor {
    /// CPU and memory. Default: requests of 100m and 128Mi, a limit of 256Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// The labels of the nodes it may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// The taints it tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Where it would rather run. Default: spread over nodes and zones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// The PriorityClass of its pods, by its name: who goes first where nodes are full. The operator must allow it. Default: the
    /// cluster's default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')")
        .message("priorityClassName must be a PriorityClass's name: lower case letters, digits, - and ."))]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// More labels of its pods, as far as the operator allows them; none of ours can be replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// More annotations of its pods, as far as the operator allows them; none of ours can be replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// More environment variables, by their values alone: RUST_LOG, LOG_FORMAT, SHUTDOWN_GRACE, ACK_WAIT.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(name, name in ['RUST_LOG', 'LOG_FORMAT', 'SHUTDOWN_GRACE', 'ACK_WAIT'])")
        .message("env may set RUST_LOG, LOG_FORMAT, SHUTDOWN_GRACE and ACK_WAIT; all else is set by the resource"))]
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

/// The defaults of the CRD, which are the pipeline's own.
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

    /// As the CRD has numbers; none of the defaults is out of its range.
    fn number(number: impl TryInto<i32>) -> i32 {
        number.try_into().unwrap_or(i32::MAX)
    }
}
