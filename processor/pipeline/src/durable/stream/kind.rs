//! The three streams of a pipeline.

/// A stream of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Events,
    Ledger,
    DeadLetters,
}

impl Kind {
    /// By it a stream that a replica has made is known.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Events => "Task events, until the replicas have taken them in",
            Self::Ledger => "The latest state of each task",
            Self::DeadLetters => "Events that could not go on, until someone looks at them",
        }
    }

    /// In metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Ledger => "ledger",
            Self::DeadLetters => "dead_letters",
        }
    }

    /// Where its room is said.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Self::Events => "STREAM_MAX_BYTES (spec.delivery.room.events)",
            Self::Ledger => "LEDGER_MAX_BYTES (spec.delivery.room.ledger)",
            Self::DeadLetters => "DEAD_LETTERS_MAX_BYTES (spec.delivery.room.deadLetters)",
        }
    }
}
