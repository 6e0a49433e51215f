//! The servers of a history, and the moments of its faults.

use std::time::Duration;

/// On how many nats-servers a history is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One.
    One,
    /// Three in a cluster, each of which keeps every stream.
    Three,
}

/// A fault and its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strike<F> {
    /// After the start; later where one before it takes longer.
    pub(crate) at: Duration,
    /// What.
    pub(crate) fault: F,
}
