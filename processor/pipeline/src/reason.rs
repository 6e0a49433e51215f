//! The reasons of dead letters.

use serde::{Deserialize, Serialize};

/// The reason of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The message is not a valid event.
    Invalid,
    /// No NATS client can read the headers of the message.
    UnreadableHeaders,
    /// NATS delivered the event again and again, and each replica crashed before it could examine it.
    MaxDeliveriesExceeded,
    /// KV did not accept the task within the attempts of the retry policy (mode Core).
    RetriesExhausted,
    /// KV refuses this task and accepts others.
    RefusedByKv,
    /// The event updates a task whose value in KV is not a task.
    UnreadableInKv,
    /// Another program has written over the record of the task in the ledger.
    UnreadableInLedger,
    /// The shutdown grace was over before KV accepted the task (mode Core).
    Shutdown,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 8] = [
        Self::Invalid,
        Self::UnreadableHeaders,
        Self::MaxDeliveriesExceeded,
        Self::RetriesExhausted,
        Self::RefusedByKv,
        Self::UnreadableInKv,
        Self::UnreadableInLedger,
        Self::Shutdown,
    ];

    /// The name of the reason in dead letters and in the label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::UnreadableHeaders => "unreadable-headers",
            Self::MaxDeliveriesExceeded => "max-deliveries-exceeded",
            Self::RetriesExhausted => "retries-exhausted",
            Self::RefusedByKv => "refused-by-kv",
            Self::UnreadableInKv => "unreadable-in-kv",
            Self::UnreadableInLedger => "unreadable-in-ledger",
            Self::Shutdown => "shutdown",
        }
    }
}
