//! What can be wrong with an event, said so that its producer can put it right.

use std::fmt;

use crate::RuleError;

/// One field at fault: where it is and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFault {
    /// The path from the top of the event, such as `data.title`; `event` for the event as a whole.
    pub field: &'static str,
    /// What is wrong, such as `must be 1 to 200 characters, got 0`.
    pub problem: RuleError,
}

impl fmt::Display for FieldFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// Why bytes are not an event. Safe to log: what it quotes is escaped and cut short.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON at all, or JSON that says a field twice.
    #[error("not a JSON event: {0}")]
    Malformed(String),
    /// JSON, but fields are missing, of a wrong type or against the rules. Every field at fault is listed.
    #[error("invalid event: {}", list(.0))]
    Invalid(Vec<FieldFault>),
}

impl DecodeError {
    /// The fields at fault; none when the bytes could not be read at all.
    #[must_use]
    pub fn faults(&self) -> &[FieldFault] {
        match self {
            Self::Malformed(_) => &[],
            Self::Invalid(faults) => faults,
        }
    }
}

fn list(faults: &[FieldFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
