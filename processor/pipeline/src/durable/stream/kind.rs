//! The three streams of a pipeline.

/// A stream of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Events,
    Ledger,
    DeadLetters,
}

impl Kind {
    /// The description of the stream in NATS. It identifies streams that a replica created.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Events => "Task events, until the replicas have taken them in",
            Self::Ledger => "The latest state of each task",
            Self::DeadLetters => "Events that could not go on, until someone looks at them",
        }
    }

    /// The label in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Ledger => "ledger",
            Self::DeadLetters => "dead_letters",
        }
    }

    /// The names of the setting for its limit.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Self::Events => "STREAM_MAX_BYTES (spec.delivery.room.events)",
            Self::Ledger => "LEDGER_MAX_BYTES (spec.delivery.room.ledger)",
            Self::DeadLetters => "DEAD_LETTERS_MAX_BYTES (spec.delivery.room.deadLetters)",
        }
    }
}
