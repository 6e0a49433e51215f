//! The servers of a history, and the times of its faults.

use std::time::Duration;

/// The number of nats-servers of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// A single server.
    One,
    /// Three servers in a cluster, which all replicate every stream.
    Three,
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strike<F> {
    /// The time after the start; later if a fault before it takes longer.
    pub(crate) at: Duration,
    /// The fault.
    pub(crate) fault: F,
}
