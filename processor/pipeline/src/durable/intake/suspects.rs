//! Finds events that crash processes, among those that NATS delivers again and again.
//!
//! The delivery count does not prove a crash. NATS also delivers events again that a stopped
//! process, or one that waits for the ledger, has not acknowledged. So a replica first records in
//! the bucket of the ledger that it starts on such an event. It handles the event alone, and then
//! deletes the record, whatever the outcome. A record that stays is the trace of a crash.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, WriteError};
use crate::durable::names::Names;
use crate::fold::Version;

/// An event with more deliveries is a suspect. Few, because each may have been a crash; not fewer,
/// because suspects are slow.
pub(crate) const TRUSTED_DELIVERIES: i64 = 3;

/// The crashes after which an event is blamed. The trusted deliveries count as crashes.
const MOST_CRASHES: u32 = 10;

/// The part of these crashes that is recorded.
const MOST_RECORDED: u32 = MOST_CRASHES - 3;

/// How long the record of a crash is kept.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// Why the crashes of an event are unknown. The event must wait.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuspectError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Trials {
    /// How many times a replica started on the event and did not end.
    begun: u32,
}

/// Whether a replica may handle an event once more.
pub(crate) enum Trial {
    Begun(Begun),
    /// The event is blamed for this many crashes.
    Blamed(u32),
}

/// The record that a replica handles an event.
pub(crate) struct Begun {
    subject: String,
    revision: Revision,
}

/// Records that this replica starts on a suspect, and that it has ended.
pub(crate) struct Suspects<S = Bucket> {
    bucket: S,
    names: Arc<Names>,
}

impl<S: Records> Suspects<S> {
    pub(crate) fn new(bucket: S, names: Arc<Names>) -> Arc<Self> {
        Arc::new(Self { bucket, names })
    }

    /// Records that this replica starts on an event.
    ///
    /// # Errors
    /// If that cannot be recorded. Then the replica must not handle the event.
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

    /// Records that the process is alive, whatever the outcome for the event.
    pub(crate) async fn end(&self, begun: Begun) {
        let Begun { subject, revision } = begun;
        let gone = Some(Duration::from_secs(1));
        // If this write is lost, the event has one crash too many.
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
