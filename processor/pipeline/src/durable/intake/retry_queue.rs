//! Retries events that the ledger, or the stream of the dead letters, refuses while it takes others. The events stay with
//! this replica, up to a limit: the replica tells NATS that it works on them, so that NATS does not deliver them again, and
//! retries with a growing delay. Beyond the limit it returns events to NATS for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::message::Acker;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::durable::intake::pending::{Acknowledge, Pending};
use crate::durable::intake::storage::{Refusal, Storage};
use crate::durable::intake::waiting::{Kept, Waiting};
use crate::telemetry::metrics::Metrics;

/// How many events of a replica may wait here.
const MOST_HELD: usize = 2_000;

/// The workers' side: where they leave what was refused.
pub(crate) struct RetryQueue<A = Acker> {
    sender: mpsc::UnboundedSender<Kept<A>>,
    room: Arc<Semaphore>,
    stuck: Stuck,
}

/// Whether nothing was taken the last time, so that fetching more does not help.
#[derive(Clone, Default)]
pub(crate) struct Stuck(Arc<AtomicBool>);

impl Stuck {
    fn note(&self, taken: bool, refused: bool) {
        if taken || refused {
            self.0.store(!taken, Ordering::Relaxed);
        }
    }

    fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<A> Clone for RetryQueue<A> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), room: Arc::clone(&self.room), stuck: self.stuck.clone() }
    }
}

impl<A: Acknowledge> RetryQueue<A> {
    /// The queue, and where what it keeps comes out. It ends when the last clone of the queue is gone.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Kept<A>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender, room: Arc::new(Semaphore::new(MOST_HELD)), stuck: Stuck::default() }, receiver)
    }

    /// Keeps events for another try, or gives them back where there is no room.
    pub(crate) async fn keep(&self, pending: Pending<A>) {
        let count = u32::try_from(pending.count()).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(count) {
            Ok(_room) => {
                let _ = self.sender.send(Kept { pending, _room });
            }
            Err(_) => pending.give_back().await,
        }
    }

    /// What became of the last try: whether anything was taken, and whether anything was not.
    pub(crate) fn note(&self, taken: bool, refused: bool) {
        self.stuck.note(taken, refused);
    }

    /// Returns when it makes sense to fetch more: while there is no room, once in a while if some are taken, and not at
    /// all if none are.
    pub(crate) async fn may_fetch(&self) {
        loop {
            // A pull may hold any number of events that turn out to be refused.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.room.acquire()).await;
            if self.takes_more() {
                return;
            }
        }
    }
    /// Whether more may be fetched now, without waiting.
    pub(crate) fn takes_more(&self) -> bool {
        self.room.available_permits() > 0 || !self.stuck.is_so()
    }

    /// What both sides note.
    pub(crate) fn stuck(&self) -> Stuck {
        self.stuck.clone()
    }
}

/// Tries refused events again until they are stored.
pub(crate) struct RetryLoop {
    pub(crate) storage: Storage,
    pub(crate) ack_wait: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stuck: Stuck,
    pub(crate) receiver: mpsc::UnboundedReceiver<Kept<Acker>>,
}

impl RetryLoop {
    /// Tries again until the workers have ended, and gives back what is left then.
    ///
    /// # Errors
    /// Where no server has answered for so long that it has to be looked what has become of stream and ledger.
    pub(crate) async fn run(self) -> Result<(), Refusal> {
        let Self { storage, ack_wait, metrics, stuck, mut receiver } = self;
        let mut trying = JoinSet::new();
        let mut waiting = Waiting::new(ack_wait, Instant::now());
        let ended = loop {
            metrics.events_held.set(i64::try_from(waiting.count()).unwrap_or(i64::MAX));
            // NATS must hear of them in time, whatever else there is to do.
            for pending in waiting.due_to_extend(Instant::now()) {
                pending.extend().await;
            }
            if let Some(round) = waiting.round(Instant::now()) {
                let storage = storage.clone();
                trying.spawn(async move {
                    let (left, why) = storage.store(round.high, round.work.clone(), round.fresh_until).await;
                    (round, left, why)
                });
            }
            let wake_at = waiting.next_wake();
            tokio::select! {
                biased;
                Some(tried) = trying.join_next() => {
                    let (round, left, why) = match tried {
                        Ok(tried) => tried,
                        Err(error) => {
                            warn!(%error, "a retry panicked");
                            stuck.note(false, true);
                            waiting.fell_over(Instant::now());
                            continue;
                        }
                    };
                    stuck.note(left.len() < round.work.len(), true);
                    let tried = waiting.tried(&round, &left, why, Instant::now());
                    for kept in &tried.stored {
                        kept.pending.ack().await;
                        metrics.events_stored.inc_by(u64::try_from(kept.pending.count()).unwrap_or(u64::MAX));
                    }
                    if let Some(why) = tried.over {
                        break Err(why);
                    }
                    if !tried.stored.is_empty() && waiting.is_empty() {
                        info!("all waiting events are stored");
                    }
                }
                kept = receiver.recv() => match kept {
                    Some(kept) => waiting.keep(kept, Instant::now()),
                    // The workers have ended.
                    None => break Ok(()),
                },
                () = tokio::time::sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
            }
        };
        trying.shutdown().await;
        while let Ok(kept) = receiver.try_recv() {
            waiting.keep(kept, Instant::now());
        }
        for kept in waiting.into_left() {
            kept.pending.give_back_now().await;
        }
        metrics.events_held.set(0);
        ended
    }
}
