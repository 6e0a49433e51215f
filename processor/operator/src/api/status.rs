//! The status of a TaskPipeline: what is so, as far as the operator and the projector know. Counts are metrics: a steady
//! state writes nothing here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is so.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TaskPipelineStatus {
    /// The generation of the spec that the operator has carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many pods there are.
    #[serde(default)]
    pub replicas: i32,
    /// How many of them are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Ready pods of those that are wanted, to be read: `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// The labels of the pods, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Ready, Progressing and Degraded by the operator; NatsConnected, KvReachable, CaughtUp, RoomLeft and DeadLettersEmpty by the
    /// replica that writes to KV.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Who writes the conditions that a replica knows: the replica itself, and the operator in its place while none is ready.
/// One field manager for both, since a condition that two have written cannot be taken back by either.
pub const PROCESSOR_MANAGER: &str = "taskpipeline-processor";

/// Which condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// All replicas that are wanted are ready, of the newest spec.
    Ready,
    /// Replicas are coming or going.
    Progressing,
    /// Something has to be mended by someone; the message says what.
    Degraded,
    /// The replica that writes to KV is connected to NATS.
    NatsConnected,
    /// KV answers as it should.
    KvReachable,
    /// What has been published is in KV, but for what came a moment ago.
    CaughtUp,
    /// None of the streams is nearly full.
    RoomLeft,
    /// No event and no task has been set aside.
    DeadLettersEmpty,
    /// The settings of the newest spec are in effect in the replica that writes to KV.
    SettingsAccepted,
}

impl ConditionType {
    /// Those that a replica writes, and not the operator.
    pub const OF_THE_PROCESSOR: [Self; 6] = [
        Self::NatsConnected,
        Self::KvReachable,
        Self::CaughtUp,
        Self::RoomLeft,
        Self::DeadLettersEmpty,
        Self::SettingsAccepted,
    ];

    /// As it stands in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::NatsConnected => "NatsConnected",
            Self::KvReachable => "KvReachable",
            Self::CaughtUp => "CaughtUp",
            Self::RoomLeft => "RoomLeft",
            Self::DeadLettersEmpty => "DeadLettersEmpty",
            Self::SettingsAccepted => "SettingsAccepted",
        }
    }
}

/// The longest message of a condition, in bytes. The API server takes 32 KiB, every pipeline's in each list and watch.
const MOST_MESSAGE: usize = 1024;

/// Not longer than [`MOST_MESSAGE`].
fn cut(mut message: String) -> String {
    const MORE: &str = "…";
    if message.len() > MOST_MESSAGE {
        message.truncate(message.floor_char_boundary(MOST_MESSAGE - MORE.len()));
        message.push_str(MORE);
    }
    message
}

/// What is said of a condition, whoever says it.
pub(crate) struct Said {
    pub(crate) kind: ConditionType,
    /// True, False or Unknown.
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Said {
    /// The condition of a spec of this generation. Its time moves only when its status does; `old`: the conditions as
    /// they are.
    pub(crate) fn condition(self, generation: Option<i64>, old: &[Condition], now: &Time) -> Condition {
        let before = old.iter().find(|before| before.type_ == self.kind.as_str());
        let since = before.filter(|before| before.status == self.status);
        Condition {
            type_: self.kind.as_str().to_owned(),
            status: self.status.to_owned(),
            reason: self.reason.to_owned(),
            message: cut(self.message),
            observed_generation: generation,
            last_transition_time: since.map_or(now, |before| &before.last_transition_time).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = cut("ü".repeat(1_000));
        assert!(long.len() <= MOST_MESSAGE && long.ends_with('…') && long.starts_with('ü'), "{}", long.len());
    }
}
