//! A request to KV, and its answer. No I/O.

use taskpipeline_contract::TaskId;
use taskpipeline_kv::{Allowance, Failure, Operation, Puts};
use tokio::time::Instant;

use super::AttemptId;

/// A request to send, and its attempt in the schedule.
pub(crate) struct Flight {
    pub(crate) request: Request,
    pub(crate) attempt: AttemptId,
}

/// A request to KV.
pub(crate) enum Request {
    /// Write these tasks.
    Put(Puts),
    /// Delete these tasks.
    Delete(Vec<TaskId>),
    /// Read these tasks.
    Get(Vec<TaskId>),
}

/// The outcome of one key.
pub(crate) enum KeyOutcome {
    /// KV wrote or deleted the key.
    Landed,
    /// KV named the key as not written.
    NotWritten,
    /// The value in KV, or `None` if KV has none.
    Read(Option<String>),
}

/// The outcome of a request.
pub(crate) struct Answer {
    pub(crate) operation: Operation,
    pub(crate) ids: Vec<TaskId>,
    /// One outcome for each id, in the order of `ids`, or the failure of the whole request.
    pub(crate) result: Result<Vec<KeyOutcome>, Failure>,
}

impl Request {
    pub(crate) fn operation(&self) -> Operation {
        match self {
            Self::Put(_) => Operation::Put,
            Self::Delete(_) => Operation::Delete,
            Self::Get(_) => Operation::Get,
        }
    }

    pub(crate) fn ids(&self) -> &[TaskId] {
        match self {
            Self::Put(puts) => puts.ids(),
            Self::Delete(ids) | Self::Get(ids) => ids,
        }
    }
}

/// An answer, and the request that it belongs to.
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    pub(crate) sent: Instant,
    pub(crate) attempt: AttemptId,
    /// The rest of the token's limit that KV reported, if it did.
    pub(crate) allowance: Option<Allowance>,
}
