//! Which letters a command is about, how it went, and why it could not begin or not go on.

use super::join;
use super::store::StoreError;
use crate::reason::Reason;

/// A letter, as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By the sequence of one of its messages.
    Sequence(u64),
    /// By its id.
    Id(String),
}

impl From<&str> for Which {
    /// No id is made of digits alone.
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Id(text.to_owned()), Self::Sequence)
    }
}

/// Which letters a command is about.
#[derive(Clone, Debug)]
pub enum Selection {
    /// These.
    These(Vec<Which>),
    /// All of them, or all with this reason.
    All(Option<Reason>),
}

/// Why a command could not begin, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum LettersError {
    /// There is no connection.
    #[error("cannot use NATS at {url}: {reason}. Check that NATS runs, and check NATS_URL and the login")]
    Nats {
        /// The servers, without credentials.
        url: String,
        /// The client's error.
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
    /// The list is not written.
    #[error("cannot write the list as JSON")]
    Json(#[from] serde_json::Error),
    /// A name does not mean one letter.
    #[error(transparent)]
    Which(#[from] NotFound),
    /// Two metrics have one name.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Why a name does not mean one letter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// It means none.
    #[error("dead letter {0} not found. Run `taskpipeline dead-letters list`")]
    None(String),
    /// It means several.
    #[error("{name} is the id of {} dead letters. Name one by its sequence: {}", .sequences.len(), join(.sequences))]
    Many {
        /// The name.
        name: String,
        /// The sequences of the letters.
        sequences: Vec<u64>,
    },
}

/// How a command that is about many letters went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// So many letters were replayed or dropped.
    pub done: usize,
    /// So many were left as they are.
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
