//! Finds events that make processes crash, among those that NATS delivers again and again. The delivery count does not
//! prove a crash: NATS also delivers again what a stopped process, or one that waits for the ledger, has not acknowledged.
//! So a replica records in the ledger's bucket that it begins with such an event, handles the event alone, and deletes
//! the record afterwards, however that ended. A record that stays was left by a crash.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, WriteError};
use crate::durable::names::Names;
use crate::fold::Version;

/// An event that was delivered more often is a suspect. Few, as each of these deliveries may have been a crash; not too
/// few, as suspects are slow.
pub(crate) const TRUSTED_DELIVERIES: i64 = 3;

/// An event is blamed after so many crashes; the trusted deliveries count as crashes.
const MOST_CRASHES: u32 = 10;

/// How many of them are recorded.
const MOST_RECORDED: u32 = MOST_CRASHES - 3;

/// How long it is remembered that a process died.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// Why nothing can be said of an event, which has to wait.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuspectError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Trials {
    /// How often it was begun to look at the event and not ended.
    begun: u32,
}

/// Whether an event may be looked at once more.
pub(crate) enum Trial {
    Begun(Begun),
    /// So many processes have died with it.
    Blamed(u32),
}

/// That an event is being looked at.
pub(crate) struct Begun {
    subject: String,
    revision: Revision,
}

/// Records that this replica begins with an event that was delivered again and again, and that it is done with it.
pub(crate) struct Suspects<S = Bucket> {
    bucket: S,
    names: Arc<Names>,
}

impl<S: Records> Suspects<S> {
    pub(crate) fn new(bucket: S, names: Arc<Names>) -> Arc<Self> {
        Arc::new(Self { bucket, names })
    }

    /// Records that an event is about to be looked at.
    ///
    /// # Errors
    /// Where that cannot be recorded; then it must not be looked at.
    pub(crate) async fn begin(&self, version: Version) -> Result<Trial, SuspectError> {
        let subject = self.names.suspect(version);
        let (trials, revision) = match self.bucket.get(&subject).await? {
            Some(stored) => (serde_json::from_slice(&stored.value).unwrap_or_default(), stored.revision),
            None => (Trials::default(), Revision::default()),
        };
        if is_to_blame(trials) {
            return Ok(Trial::Blamed(MOST_CRASHES));
        }
        let trials = Trials { begun: trials.begun + 1 };
        let value = serde_json::to_vec(&trials).map_err(|error| WriteError::Unknown(error.to_string()))?;
        let revision =
            self.bucket.compare_and_set(subject.clone(), value, revision, Some(REMEMBERED)).await?;
        Ok(Trial::Begun(Begun { subject, revision }))
    }

    /// The process is alive, whatever became of the event.
    pub(crate) async fn end(&self, begun: Begun) {
        let Begun { subject, revision } = begun;
        let gone = Some(Duration::from_secs(1));
        // Should it not get through, the event has one crash more to its name than it should.
        let _ = self.bucket.compare_and_set(subject, Vec::new(), revision, gone).await;
    }
}

fn is_to_blame(trials: Trials) -> bool {
    trials.begun >= MOST_RECORDED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_crashes_are_blamed_on_an_event_of_which_the_first_three_were_not_recorded() {
        assert_eq!(i64::from(MOST_RECORDED) + TRUSTED_DELIVERIES, i64::from(MOST_CRASHES));
        assert!(!is_to_blame(Trials { begun: 6 }) && is_to_blame(Trials { begun: 7 }));
    }
}
