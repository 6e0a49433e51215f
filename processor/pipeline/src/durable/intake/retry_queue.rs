//! Retries events that the ledger, or the stream of dead letters, refuses while it accepts others.
//!
//! The events stay with this replica, up to a limit. The replica tells NATS that it works on them,
//! so NATS does not deliver them again, and retries with a growing delay. Beyond the limit it
//! returns events to NATS for a while.

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

/// The most events of a replica that wait here.
const MOST_HELD: usize = 2_000;

/// The end of the workers, which puts refused events into the queue.
pub(crate) struct RetryQueue<A = Acker> {
    sender: mpsc::UnboundedSender<Kept<A>>,
    room: Arc<Semaphore>,
    stuck: Stuck,
}

/// Whether the last attempt stored nothing, so that fetching more does not help.
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
    /// Creates the queue, and its receiver. The receiver ends when the last clone of the queue is
    /// dropped.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Kept<A>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender, room: Arc::new(Semaphore::new(MOST_HELD)), stuck: Stuck::default() }, receiver)
    }

    /// Keeps events for another attempt, or returns them to NATS if there is no room.
    pub(crate) async fn keep(&self, pending: Pending<A>) {
        let count = u32::try_from(pending.count()).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(count) {
            Ok(_room) => {
                let _ = self.sender.send(Kept { pending, _room });
            }
            Err(_) => pending.give_back().await,
        }
    }

    /// Records the last attempt: whether some events were stored, and whether some were refused.
    pub(crate) fn note(&self, taken: bool, refused: bool) {
        self.stuck.note(taken, refused);
    }

    /// Waits until fetching more is useful.
    ///
    /// Without room, that is once a second if some events are stored, and not at all if none are.
    pub(crate) async fn may_fetch(&self) {
        loop {
            // A pull may bring any number of events that are refused.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.room.acquire()).await;
            if self.takes_more() {
                return;
            }
        }
    }
    /// Returns whether more may be fetched now, without waiting.
    pub(crate) fn takes_more(&self) -> bool {
        self.room.available_permits() > 0 || !self.stuck.is_so()
    }

    /// The state that both ends share.
    pub(crate) fn stuck(&self) -> Stuck {
        self.stuck.clone()
    }
}

/// Retries refused events until they are stored.
pub(crate) struct RetryLoop {
    pub(crate) storage: Storage,
    pub(crate) ack_wait: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stuck: Stuck,
    pub(crate) receiver: mpsc::UnboundedReceiver<Kept<Acker>>,
}

impl RetryLoop {
    /// Retries until the workers have ended, and then returns the other events to NATS.
    ///
    /// # Errors
    /// If no server has answered for so long that the state of the stream and the ledger must be
    /// checked.
    pub(crate) async fn run(self) -> Result<(), Refusal> {
        let Self { storage, ack_wait, metrics, stuck, mut receiver } = self;
        let mut trying = JoinSet::new();
        let mut waiting = Waiting::new(ack_wait, Instant::now());
        let ended = loop {
            metrics.events_held.set(i64::try_from(waiting.count()).unwrap_or(i64::MAX));
            // The extension must reach NATS in time, before any other work.
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
                            waiting.panicked(Instant::now());
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
