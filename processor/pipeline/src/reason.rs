//! Why an event or a task cannot go on.

use serde::{Deserialize, Serialize};

/// Why an event ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The message is no event.
    Invalid,
    /// Its headers are such that no client can read the message.
    UnreadableHeaders,
    /// It was delivered again and again, and no replica lived to say what it is.
    DeliveredTooOften,
    /// KV did not take it in as many attempts as the policy allows.
    AttemptsUsedUp,
    /// KV refuses this task, however it is sent.
    RefusedByKv,
    /// It changes a task whose value in KV is not one.
    UnreadableInKv,
    /// It is a task's record in the ledger that something else has written over.
    UnreadableInLedger,
    /// There was no time left at shutdown.
    Shutdown,
}

impl Reason {
    /// Each of them.
    pub const ALL: [Self; 8] = [
        Self::Invalid,
        Self::UnreadableHeaders,
        Self::DeliveredTooOften,
        Self::AttemptsUsedUp,
        Self::RefusedByKv,
        Self::UnreadableInKv,
        Self::UnreadableInLedger,
        Self::Shutdown,
    ];

    /// As it stands in the letter and in the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::UnreadableHeaders => "unreadable-headers",
            Self::DeliveredTooOften => "delivered-too-often",
            Self::AttemptsUsedUp => "attempts-used-up",
            Self::RefusedByKv => "refused-by-kv",
            Self::UnreadableInKv => "unreadable-in-kv",
            Self::UnreadableInLedger => "unreadable-in-ledger",
            Self::Shutdown => "shutdown",
        }
    }
}
