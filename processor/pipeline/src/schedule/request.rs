//! A request to KV, and its answer. No I/O.

use taskpipeline_contract::TaskId;
use taskpipeline_kv::{Allowance, Failure, Operation, Puts};
use tokio::time::Instant;

use super::AttemptId;

/// A request to be sent, and which attempt of the schedule it belongs to.
pub(crate) struct Flight {
    pub(crate) request: Request,
    pub(crate) attempt: AttemptId,
}

/// A request to KV.
pub(crate) enum Request {
    /// Write these tasks.
    Put(Puts),
    /// Delete these.
    Delete(Vec<TaskId>),
    /// Read these.
    Get(Vec<TaskId>),
}

/// The outcome of one key.
pub(crate) enum KeyOutcome {
    /// Written or deleted.
    Landed,
    /// KV names it as not written.
    NotWritten,
    /// Its value, or that it has none.
    Read(Option<String>),
}

/// The outcome of a request.
pub(crate) struct Answer {
    pub(crate) operation: Operation,
    pub(crate) ids: Vec<TaskId>,
    /// One outcome for each id, in their order; or none is known.
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

/// An answer as it came in.
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    pub(crate) sent: Instant,
    pub(crate) attempt: AttemptId,
    /// What KV said beside it is left of the token's limit, if it did.
    pub(crate) allowance: Option<Allowance>,
}
