//! The faults of an event, named so that its producer can correct them.

use std::fmt;

use crate::RuleError;

/// An invalid field: its path and its problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFault {
    /// The path of the field, such as `data.title`; `event` for the whole event.
    pub field: &'static str,
    /// The problem, such as `must be 1 to 200 characters, got 0`.
    pub problem: RuleError,
}

impl fmt::Display for FieldFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// The reason why bytes are not an event. Safe to log: quoted input is escaped and cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not JSON, or the JSON repeats a field.
    #[error("not a JSON event: {0}")]
    Malformed(String),
    /// Fields are missing, have a wrong type or break a rule. Lists every invalid field.
    #[error("invalid event: {}", list(.0))]
    Invalid(Vec<FieldFault>),
}

impl DecodeError {
    /// The invalid fields; empty if the bytes are malformed.
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
