//! Events in flight: what must be stored for them, and the answers to NATS.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker;
use taskpipeline_contract::TaskId;
use tokio::time::Instant;
use tracing::debug;

use crate::dead_letters::Letter;
use crate::durable::ledger::record::Record;
use crate::durable::stream::incarnation::HighWater;

/// Answers NATS about one delivery.
pub(crate) trait Acknowledge: Send + Sync + 'static {
    /// Sends the answer, without waiting for NATS.
    fn answer(&self, kind: AckKind) -> impl Future<Output = Result<(), String>> + Send;
}

impl Acknowledge for Acker {
    async fn answer(&self, kind: AckKind) -> Result<(), String> {
        self.ack_with(kind).await.map_err(|error| error.to_string())
    }
}

/// The store operation that must succeed before events may be acknowledged.
#[derive(Clone)]
pub(crate) enum Work {
    /// Fold the record into the ledger.
    Fold(TaskId, Arc<Record>),
    /// Store the letter in the stream of dead letters.
    Keep(Arc<Letter>),
    /// Not decided yet.
    Nothing,
}

/// Events, and what must be stored for them.
pub(crate) struct Pending<A = Acker> {
    pub(crate) work: Work,
    pub(crate) ackers: Vec<A>,
    /// The highest high water of the events.
    pub(crate) high: HighWater,
    /// The highest number of deliveries of one of the events.
    pub(crate) deliveries: i64,
    /// When the replica last told NATS that it works on them.
    pub(crate) extended: Instant,
}

impl<A: Acknowledge> Pending<A> {
    /// Adds other events of the same task.
    pub(crate) fn join(&mut self, other: Self) {
        if let (Work::Fold(_, record), Work::Fold(_, more)) = (&mut self.work, &other.work) {
            Arc::make_mut(record).merge(more);
        }
        self.ackers.extend(other.ackers);
        self.high = self.high.max(other.high);
        self.deliveries = self.deliveries.max(other.deliveries);
    }

    /// Acknowledges the events, which are stored. If an ack is lost, NATS only delivers the event
    /// again.
    pub(crate) async fn ack(&self) {
        self.answer_all(AckKind::Ack).await;
    }

    /// Returns the events to NATS. The delay before the next delivery grows with the number of
    /// deliveries.
    pub(crate) async fn give_back(&self) {
        self.answer_all(AckKind::Nak(Some(delay_after(self.deliveries)))).await;
    }

    /// Returns the events to NATS, which delivers them again at once.
    pub(crate) async fn give_back_now(&self) {
        self.answer_all(AckKind::Nak(None)).await;
    }

    /// Tells NATS that the replica works on the events.
    pub(crate) async fn extend(&self) {
        self.answer_all(AckKind::Progress).await;
    }

    /// The number of events.
    pub(crate) fn count(&self) -> usize {
        self.ackers.len()
    }

    async fn answer_all(&self, kind: AckKind) {
        for acker in &self.ackers {
            if let Err(error) = acker.answer(kind).await {
                debug!(%error, "cannot send an ack");
            }
        }
    }
}

/// The delay before the next delivery, from 1 s to 32 s.
fn delay_after(deliveries: i64) -> Duration {
    let doublings = u32::try_from(deliveries.clamp(1, 6) - 1).unwrap_or(0);
    Duration::from_secs(1 << doublings)
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
