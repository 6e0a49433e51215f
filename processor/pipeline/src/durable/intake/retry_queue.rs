//! Retries events that the ledger, or the stream of the dead letters, refuses while it takes others. The events stay with
//! this replica, up to a limit: the replica tells NATS that it works on them, so that NATS does not deliver them again, and
//! retries with a growing delay. Beyond the limit it returns events to NATS for a while.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker;
use futures_util::{StreamExt, stream};
use taskpipeline_contract::TaskId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::dead_letters::Letter;
use crate::durable::dead_letters::{DeadLetters, LetterError};
use crate::durable::intake::mark::{Mark, MarkError};
use crate::durable::ledger::record::Record;
use crate::durable::ledger::{Ledger, LedgerError};
use crate::durable::stream::incarnation::HighWater;
use crate::telemetry::metrics::Metrics;

/// How many events of a replica may wait here.
const MOST_HELD: usize = 2_000;

/// How many dead letters are stored at a time.
const MOST_LETTERS: usize = 64;

/// How many are tried again at a time.
const ROUND: usize = 256;

/// The first and the longest delay between two tries.
const DELAYS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// After so long without an answer it is looked whether stream and ledger are what they were.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why events were not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Mark(#[from] MarkError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Letter(#[from] LetterError),
    #[error("events were held longer than NATS waits for their acks; NATS delivers them again")]
    TooSlow,
}

impl Refusal {
    /// Whether a server has said so; otherwise there may be none, or no such stream any more.
    fn is_an_answer(&self) -> bool {
        use crate::durable::bucket::WriteError;

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

/// What has to be stored before events may be acknowledged.
#[derive(Clone)]
pub(crate) enum Work {
    /// In the ledger.
    Fold(TaskId, Arc<Record>),
    /// In the stream of the dead letters.
    Keep(Arc<Letter>),
    /// That is not known yet.
    Nothing,
}

/// Events, and what has to be stored of them.
pub(crate) struct Pending {
    pub(crate) work: Work,
    pub(crate) ackers: Vec<Acker>,
    /// The newest of them.
    pub(crate) high: HighWater,
    /// How often the oldest delivery among them was made.
    pub(crate) deliveries: i64,
    /// When NATS was told last that they are being worked on.
    pub(crate) extended: Instant,
}

impl Pending {
    /// Adds other events of the same task.
    pub(crate) fn join(&mut self, other: Self) {
        if let (Work::Fold(_, record), Work::Fold(_, more)) = (&mut self.work, &other.work) {
            Arc::make_mut(record).merge(more);
        }
        self.ackers.extend(other.ackers);
        self.high = self.high.max(other.high);
        self.deliveries = self.deliveries.max(other.deliveries);
    }

    /// They are stored. A lost ack only has the events delivered again.
    pub(crate) async fn ack(&self) {
        self.tell(AckKind::Ack).await;
    }

    /// NATS is to deliver them again, later the more often it has done so.
    pub(crate) async fn give_back(&self) {
        self.tell(AckKind::Nak(Some(delay_after(self.deliveries)))).await;
    }

    async fn tell(&self, kind: AckKind) {
        for acker in &self.ackers {
            if let Err(error) = acker.ack_with(kind).await {
                debug!("an ack cannot be sent: {error}");
            }
        }
    }
}

/// From 1 s to 32 s.
fn delay_after(deliveries: i64) -> Duration {
    let doublings = u32::try_from(deliveries.clamp(1, 6) - 1).unwrap_or(0);
    Duration::from_secs(1 << doublings)
}

/// Stores what events say.
#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) letters: DeadLetters,
    pub(crate) mark: Arc<Mark>,
}

impl Storage {
    /// Stores all of it that can be stored. Answers which were not, by their places, and why. After `fresh_until` (a
    /// stopped process) the events may be with another replica, and what is known of their tasks may have expired
    /// meanwhile: then the ledger gets none of it.
    pub(crate) async fn store(
        &self,
        high: HighWater,
        work: Vec<Work>,
        fresh_until: Instant,
    ) -> (HashSet<usize>, Option<Refusal>) {
        let all = || (0..work.len()).collect();
        if let Err(error) = self.mark.raise(high).await {
            return (all(), Some(error.into()));
        }
        let (mut left, mut why): (HashSet<usize>, Option<Refusal>) = (HashSet::new(), None);
        let mut records: HashMap<TaskId, Arc<Record>> = HashMap::with_capacity(work.len());
        let mut places: HashMap<TaskId, Vec<usize>> = HashMap::with_capacity(work.len());
        let mut letters = Vec::new();
        for (place, work) in work.into_iter().enumerate() {
            match work {
                Work::Nothing => {}
                Work::Keep(letter) => letters.push((place, letter)),
                Work::Fold(id, record) => {
                    places.entry(id.clone()).or_default().push(place);
                    match records.get_mut(&id) {
                        Some(known) => {
                            Arc::make_mut(known).merge(&record);
                        }
                        None => {
                            records.insert(id, record);
                        }
                    }
                }
            }
        }
        // Many may come at once, and none waits for another.
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
        if Instant::now() > fresh_until {
            left.extend(places.into_values().flatten());
            return (left, Some(Refusal::TooSlow));
        }
        if let Err(refused) = self.ledger.apply(records).await {
            left.extend(refused.tasks.iter().filter_map(|id| places.get(id)).flatten());
            why = Some(refused.why.into());
        }
        (left, why)
    }
}

/// The workers' side: where they leave what was refused.
#[derive(Clone)]
pub(crate) struct RetryQueue {
    sender: mpsc::UnboundedSender<(Pending, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    /// Nothing was taken the last time, so that fetching more does not help.
    stuck: Arc<AtomicBool>,
}

impl RetryQueue {
    /// Both sides of it.
    pub(crate) fn new(storage: Storage, ack_wait: Duration, metrics: Arc<Metrics>) -> (Self, RetryLoop) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (room, stuck) = (Arc::new(Semaphore::new(MOST_HELD)), Arc::new(AtomicBool::new(false)));
        let queue = Self { sender, room, stuck: Arc::clone(&stuck) };
        (queue, RetryLoop { storage, ack_wait, metrics, stuck, receiver, held: BTreeMap::new(), next: 0 })
    }

    /// Keeps events for another try, or gives them back where there is no room.
    pub(crate) async fn keep(&self, held: Pending) {
        let count = u32::try_from(held.ackers.len()).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(count) {
            Ok(permit) => {
                let _ = self.sender.send((held, permit));
            }
            Err(_) => held.give_back().await,
        }
    }

    /// What became of the last try: whether anything was taken, and whether anything was not.
    pub(crate) fn note(&self, taken: bool, refused: bool) {
        if taken || refused {
            self.stuck.store(!taken, Ordering::Relaxed);
        }
    }

    /// Returns when it makes sense to fetch more: while there is no room, once in a while if some are taken, and not at
    /// all if none are.
    pub(crate) async fn may_fetch(&self) {
        loop {
            // A pull may hold any number of events that turn out to be refused.
            let room = tokio::time::timeout(Duration::from_secs(1), self.room.acquire()).await;
            if room.is_ok() || !self.stuck.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// The side that tries again. See the module's head.
pub(crate) struct RetryLoop {
    storage: Storage,
    ack_wait: Duration,
    metrics: Arc<Metrics>,
    stuck: Arc<AtomicBool>,
    receiver: mpsc::UnboundedReceiver<(Pending, OwnedSemaphorePermit)>,
    /// By the order in which they are tried.
    held: BTreeMap<u64, (Pending, OwnedSemaphorePermit)>,
    next: u64,
}

impl RetryLoop {
    /// Tries again until the workers have ended, and gives back what is left then.
    ///
    /// # Errors
    /// Where no server has answered for so long that it has to be looked what has become of stream and ledger.
    pub(crate) async fn run(mut self) -> Result<(), Refusal> {
        let mut trying = JoinSet::new();
        let mut delay = DELAYS.0;
        let mut try_at = Instant::now();
        let mut unanswered_since: Option<Instant> = None;
        let extend_every = self.ack_wait / 3;
        let mut extend_at = Instant::now() + extend_every;
        let ended = loop {
            self.metrics.events_held.set(i64::try_from(self.count()).unwrap_or(i64::MAX));
            tokio::select! {
                // NATS must hear of them in time, whatever else there is to do.
                biased;
                () = tokio::time::sleep_until(extend_at), if !self.held.is_empty() => {
                    self.extend().await;
                    extend_at = Instant::now() + extend_every;
                }
                Some(tried) = trying.join_next() => {
                    let (keys, left, why): (Vec<u64>, HashSet<usize>, Option<Refusal>) = match tried {
                        Ok(tried) => tried,
                        Err(error) => {
                            warn!("a try fell over: {error}");
                            (Vec::new(), HashSet::new(), None)
                        }
                    };
                    let taken = left.len() < keys.len();
                    self.stuck.store(!taken, Ordering::Relaxed);
                    self.settle(&keys, &left).await;
                    match why {
                        Some(why) if !why.is_an_answer() => {
                            let since = *unanswered_since.get_or_insert_with(Instant::now);
                            if since.elapsed() > PATIENCE {
                                break Err(why);
                            }
                        }
                        _ => unanswered_since = None,
                    }
                    delay = if taken { DELAYS.0 } else { (delay * 2).min(DELAYS.1) };
                    try_at = if taken { Instant::now() } else { Instant::now() + delay };
                    if taken && self.held.is_empty() {
                        info!("all events that had to wait are stored");
                    }
                }
                held = self.receiver.recv() => match held {
                    Some(held) => {
                        if self.held.is_empty() {
                            (delay, try_at) = (DELAYS.0, Instant::now() + DELAYS.0);
                            extend_at = (held.0.extended + extend_every).max(Instant::now());
                        }
                        self.held.insert(self.next, held);
                        self.next += 1;
                    }
                    // The workers have ended.
                    None => break Ok(()),
                },
                () = tokio::time::sleep_until(try_at), if trying.is_empty() && !self.held.is_empty() => {
                    let keys: Vec<_> = self.held.keys().copied().take(ROUND).collect();
                    let work: Vec<_> =
                        keys.iter().filter_map(|key| Some(self.held.get(key)?.0.work.clone())).collect();
                    let high = self.held.values().map(|(held, _)| held.high).reduce(HighWater::max);
                    let oldest = self.held.values().map(|(held, _)| held.extended).min();
                    let (Some(high), Some(oldest)) = (high, oldest) else { continue };
                    let fresh_until = oldest + self.ack_wait;
                    let storage = self.storage.clone();
                    trying.spawn(async move {
                        let (left, why) = storage.store(high, work, fresh_until).await;
                        (keys, left, why)
                    });
                }
            }
        };
        trying.shutdown().await;
        while let Ok(held) = self.receiver.try_recv() {
            self.held.insert(self.next, held);
            self.next += 1;
        }
        for (held, _) in self.held.values() {
            held.tell(AckKind::Nak(None)).await;
        }
        self.metrics.events_held.set(0);
        ended
    }

    fn count(&self) -> usize {
        self.held.values().map(|(held, _)| held.ackers.len()).sum()
    }

    /// Acknowledges what is stored, and has the rest wait behind the others.
    async fn settle(&mut self, keys: &[u64], left: &HashSet<usize>) {
        for (place, key) in keys.iter().enumerate() {
            let Some((held, permit)) = self.held.remove(key) else { continue };
            if left.contains(&place) {
                self.held.insert(self.next, (held, permit));
                self.next += 1;
            } else {
                held.ack().await;
                self.metrics.events_stored.inc_by(u64::try_from(held.ackers.len()).unwrap_or(u64::MAX));
            }
        }
    }

    /// Tells NATS that they are being worked on. What it has not heard of for too long may be with another replica by
    /// now, and what is known of its task may have expired since: such events are let go.
    async fn extend(&mut self) {
        let ack_wait = self.ack_wait;
        self.held.retain(|_, (held, _)| held.extended.elapsed() < ack_wait);
        for (held, _) in self.held.values_mut() {
            held.extended = Instant::now();
            held.tell(AckKind::Progress).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_often_an_event_was_given_back_the_longer_it_stays_away() {
        let delays: Vec<_> = [0, 1, 2, 5, 6, 99].map(|n| delay_after(n).as_secs()).to_vec();
        assert_eq!(delays, [1, 1, 2, 16, 32, 32]);
    }
}
