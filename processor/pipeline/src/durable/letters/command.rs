//! The arguments and outcomes of the commands about dead letters.

use super::join;
use super::store::StoreError;
use crate::reason::Reason;

/// A letter as named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By the sequence of one of its messages.
    Sequence(u64),
    /// By its id.
    Id(String),
}

impl From<&str> for Which {
    /// An id does not consist of digits only.
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Id(text.to_owned()), Self::Sequence)
    }
}

/// The letters that a command is about.
#[derive(Clone, Debug)]
pub enum Selection {
    /// The letters with these names.
    These(Vec<Which>),
    /// All letters, or all with this reason.
    All(Option<Reason>),
}

/// Why a command failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum LettersError {
    /// There is no connection to NATS.
    #[error("cannot use NATS at {url}: {reason}. Check that NATS runs, and check NATS_URL and the login")]
    Nats {
        /// The servers, without credentials.
        url: String,
        /// The error of the client.
        reason: String,
    },
    /// The stream of dead letters cannot be used.
    #[error(
        "cannot use JetStream at {url}: {reason}. Check that JetStream is on and that the login may use it"
    )]
    Store {
        /// The servers, without credentials.
        url: String,
        /// The error of the stream.
        reason: StoreError,
    },
    /// The list could not be encoded.
    #[error("cannot write the list as JSON")]
    Json(#[from] serde_json::Error),
    /// A name does not mean exactly one letter.
    #[error(transparent)]
    Which(#[from] NotFound),
    /// Two metrics have the same name.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Why a name does not mean exactly one letter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// No letter has this name.
    #[error("dead letter {0} not found. Run `taskpipeline dead-letters list`")]
    None(String),
    /// Several letters have this name.
    #[error("{name} is the id of {} dead letters. Name one by its sequence: {}", .sequences.len(), join(.sequences))]
    Many {
        /// The name.
        name: String,
        /// The sequences of the letters.
        sequences: Vec<u64>,
    },
}

/// The counts of a command about several letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The letters that were replayed or dropped.
    pub done: usize,
    /// The letters that stayed as they were.
    pub not_done: usize,
}

impl Tally {
    pub(super) fn note(
        &mut self,
        outcome: &Result<String, String>,
        tell: &mut dyn FnMut(Result<&str, &str>),
    ) {
        match outcome {
            Ok(done) => {
                self.done += 1;
                tell(Ok(done));
            }
            Err(why) => {
                self.not_done += 1;
                tell(Err(why));
            }
        }
    }
}
