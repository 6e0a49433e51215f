//! The status of a TaskPipeline, as the operator and the writer report it. Counts of events and tasks are metrics, so a steady
//! state writes nothing here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The status of the pipeline, as the operator and the writer report it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TaskPipelineStatus {
    /// The generation of the spec that the operator reconciled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The number of pods.
    #[serde(default)]
    pub replicas: i32,
    /// The number of ready pods.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Ready pods and wanted pods as text: `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// The labels of the pods, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The conditions. The operator writes Ready, Progressing and Degraded. The replica that writes to KV writes NatsConnected,
    /// KvReachable, CaughtUp, RoomLeft, DeadLettersEmpty and SettingsAccepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The field manager of the conditions that the writer reports. While no replica is ready, the operator writes them under the
/// same name, because a condition with two managers cannot be removed by either.
pub const PROCESSOR_MANAGER: &str = "taskpipeline-processor";

/// The type of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// All wanted replicas are ready.
    Ready,
    /// Replicas start, stop or are replaced.
    Progressing,
    /// A user has to act; the message says how.
    Degraded,
    /// The replica that writes to KV is connected to NATS.
    NatsConnected,
    /// Requests to KV succeed.
    KvReachable,
    /// No event and no change has waited for KV for more than 90 s.
    CaughtUp,
    /// No stream is nearly full.
    RoomLeft,
    /// There are no dead letters.
    DeadLettersEmpty,
    /// The settings of the newest spec are in effect in the replica that writes to KV.
    SettingsAccepted,
}

impl ConditionType {
    /// The conditions of the writer, not of the operator.
    pub const OF_THE_PROCESSOR: [Self; 6] = [
        Self::NatsConnected,
        Self::KvReachable,
        Self::CaughtUp,
        Self::RoomLeft,
        Self::DeadLettersEmpty,
        Self::SettingsAccepted,
    ];

    /// The name in the status.
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

/// The longest message of a condition, in bytes. The API server allows 32 KiB, but each list and watch has the messages of all
/// pipelines.
const MOST_MESSAGE: usize = 1024;

/// Cuts a message to [`MOST_MESSAGE`] bytes.
fn cut(mut message: String) -> String {
    const MORE: &str = "…";
    if message.len() > MOST_MESSAGE {
        message.truncate(message.floor_char_boundary(MOST_MESSAGE - MORE.len()));
        message.push_str(MORE);
    }
    message
}

/// A condition without its time and generation.
pub(crate) struct NewCondition {
    pub(crate) kind: ConditionType,
    /// True, False or Unknown.
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl NewCondition {
    /// Completes the condition for a spec of this generation. Its time changes only with its status. `old`: the present
    /// conditions.
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
