//! Stores events: the mark first, then dead letters and records of the ledger. Stored events may be
//! acknowledged.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use taskpipeline_contract::TaskId;
use tokio::time::Instant;

use crate::durable::bucket::{Bucket, WriteError};
use crate::durable::dead_letters::{DeadLetters, LetterError};
use crate::durable::intake::mark::{Mark, MarkError};
use crate::durable::intake::pending::Work;
use crate::durable::ledger::record::Record;
use crate::durable::ledger::store::{LetterBox, Store};
use crate::durable::ledger::{Ledger, LedgerError};
use crate::durable::stream::incarnation::HighWater;

/// The most dead letters that are stored at a time.
const MOST_LETTERS: usize = 64;

/// Why events were not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Mark(#[from] MarkError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Letter(#[from] LetterError),
    #[error("events were held longer than the ack wait; NATS delivers them again")]
    TooSlow,
}

impl Refusal {
    /// Returns whether a server has answered. Otherwise no server is there, or the stream does not
    /// exist any more.
    pub(crate) fn is_an_answer(&self) -> bool {
        let refused = |error: &WriteError| matches!(error, WriteError::Refused(_)) || error.is_contended();
        match self {
            Self::Mark(MarkError::Write(error)) | Self::Ledger(LedgerError::Write(error)) => refused(error),
            Self::Mark(MarkError::Read(_)) | Self::Ledger(LedgerError::Read(_)) => false,
            Self::Ledger(LedgerError::Foreign { .. } | LedgerError::Letter(_))
            | Self::Letter(_)
            | Self::TooSlow => true,
        }
    }
}

/// Stores events.
#[derive(Clone)]
pub(crate) struct Storage<S = Bucket, L = DeadLetters> {
    pub(crate) ledger: Arc<Ledger<S, L>>,
    pub(crate) letters: L,
    pub(crate) mark: Arc<Mark<S>>,
}

impl<S: Store, L: LetterBox> Storage<S, L> {
    /// Starts a session in this incarnation. The server may be another one, or restored from an
    /// older state.
    pub(crate) async fn begin(&self, incarnation: u32) {
        self.ledger.forget_all();
        self.mark.begin(incarnation).await;
    }

    /// The time of the clock of the storage.
    pub(crate) fn now(&self) -> Instant {
        self.ledger.bucket().now()
    }

    /// Stores all work that can be stored. Returns the places of refused work, and the reason.
    ///
    /// After `fresh_until` (for example in a stopped process) another replica may have the events,
    /// and tombstones of their tasks may have expired. Then the ledger gets none of them.
    pub(crate) async fn store(
        &self,
        high: HighWater,
        work: Vec<Work>,
        fresh_until: Instant,
    ) -> (BTreeSet<usize>, Option<Refusal>) {
        let all = || (0..work.len()).collect();
        if let Err(error) = self.mark.raise(high).await {
            return (all(), Some(error.into()));
        }
        let (mut left, mut why): (BTreeSet<usize>, Option<Refusal>) = (BTreeSet::new(), None);
        let mut records: Vec<(TaskId, Arc<Record>)> = Vec::with_capacity(work.len());
        // For each task: the place of its record in `records`, and the places of its work.
        let mut places: HashMap<TaskId, (usize, Vec<usize>)> = HashMap::with_capacity(work.len());
        let mut letters = Vec::new();
        for (place, work) in work.into_iter().enumerate() {
            match work {
                Work::Nothing => {}
                Work::Keep(letter) => letters.push((place, letter)),
                Work::Fold(id, record) => match places.get_mut(&id) {
                    Some((at, from)) => {
                        from.push(place);
                        if let Some((_, known)) = records.get_mut(*at) {
                            Arc::make_mut(known).merge(&record);
                        }
                    }
                    None => {
                        places.insert(id.clone(), (records.len(), vec![place]));
                        records.push((id, record));
                    }
                },
            }
        }
        // Many letters may come at once, so none waits for another.
        let mut storing = stream::iter(letters)
            .map(|(place, letter)| async move { (place, self.letters.store(&letter).await) })
            .buffer_unordered(MOST_LETTERS);
        while let Some((place, stored)) = storing.next().await {
            if let Err(error) = stored {
                left.insert(place);
                why = Some(error.into());
            }
        }
        if records.is_empty() {
            return (left, why);
        }
        if self.now() > fresh_until {
            left.extend(places.into_values().flat_map(|(_, from)| from));
            return (left, Some(Refusal::TooSlow));
        }
        if let Err(refused) = self.ledger.apply(records).await {
            left.extend(refused.tasks.iter().filter_map(|id| places.get(id)).flat_map(|(_, from)| from));
            why = Some(refused.why.into());
        }
        (left, why)
    }
}
