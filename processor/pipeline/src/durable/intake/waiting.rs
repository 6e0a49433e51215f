//! Decides which refused events are retried, and when. Pure.
//!
//! Events take turns, with a growing delay while none is stored. Meanwhile the replica tells NATS
//! that it works on them, so that NATS does not deliver them again.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::durable::intake::pending::{Acknowledge, Pending, Work};
use crate::durable::intake::storage::Refusal;
use crate::durable::stream::incarnation::HighWater;

/// The most events that are retried at a time.
const ROUND: usize = 256;

/// The first and the longest delay between two attempts.
const DELAYS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// The time without an answer after which the state of the stream and the ledger must be checked.
const PATIENCE: Duration = Duration::from_secs(10);

/// Events, and their room in the queue.
pub(crate) struct Kept<A> {
    pub(crate) pending: Pending<A>,
    pub(crate) _room: OwnedSemaphorePermit,
}

/// Events that must be retried now.
pub(crate) struct Round {
    keys: Vec<u64>,
    pub(crate) work: Vec<Work>,
    pub(crate) high: HighWater,
    /// The time until which NATS does not deliver the oldest of them to another replica.
    pub(crate) fresh_until: Instant,
}

/// The outcome of a round.
pub(crate) struct Tried<A> {
    /// The stored events, which must be acknowledged.
    pub(crate) stored: Vec<Kept<A>>,
    /// Set if no server has answered for so long that the state of the stream and the ledger must
    /// be checked.
    pub(crate) over: Option<Refusal>,
}

/// Refused events, and the time of the next attempt.
pub(crate) struct Waiting<A> {
    ack_wait: Duration,
    /// By the order in which they are retried.
    held: BTreeMap<u64, Kept<A>>,
    next: u64,
    delay: Duration,
    try_at: Instant,
    trying: bool,
    extend_at: Instant,
    unanswered_since: Option<Instant>,
}

impl<A: Acknowledge> Waiting<A> {
    pub(crate) fn new(ack_wait: Duration, now: Instant) -> Self {
        Self {
            ack_wait,
            held: BTreeMap::new(),
            next: 0,
            delay: DELAYS.0,
            try_at: now,
            trying: false,
            extend_at: now + ack_wait / 3,
            unanswered_since: None,
        }
    }

    /// Adds refused events.
    pub(crate) fn keep(&mut self, kept: Kept<A>, now: Instant) {
        if self.held.is_empty() {
            (self.delay, self.try_at) = (DELAYS.0, now + DELAYS.0);
            self.extend_at = (kept.pending.extended + self.ack_wait / 3).max(now);
        }
        self.put_behind(kept);
    }

    /// The number of waiting events.
    pub(crate) fn count(&self) -> usize {
        self.held.values().map(|kept| kept.pending.count()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// When to call again; `None` while no event waits.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let try_at = if self.trying { self.extend_at } else { self.try_at.min(self.extend_at) };
        (!self.held.is_empty()).then_some(try_at)
    }

    /// The events of which NATS must hear now that the replica works on them.
    ///
    /// Forgets events that NATS has not heard of for too long. Another replica may have them by
    /// now, and tombstones of their tasks may have expired.
    pub(crate) fn due_to_extend(&mut self, now: Instant) -> impl Iterator<Item = &Pending<A>> {
        let due = now >= self.extend_at && !self.held.is_empty();
        if due {
            let ack_wait = self.ack_wait;
            self.held.retain(|_, kept| now.duration_since(kept.pending.extended) < ack_wait);
            self.held.values_mut().for_each(|kept| kept.pending.extended = now);
            self.extend_at = now + ack_wait / 3;
        }
        self.held.values().map(|kept| &kept.pending).filter(move |_| due)
    }

    /// The events to retry now. [`Self::tried`] must follow.
    pub(crate) fn round(&mut self, now: Instant) -> Option<Round> {
        if self.trying || now < self.try_at {
            return None;
        }
        let high = self.held.values().map(|kept| kept.pending.high).reduce(HighWater::max)?;
        let oldest = self.held.values().map(|kept| kept.pending.extended).min()?;
        let round = self.held.iter().take(ROUND);
        let (keys, work) = round.map(|(key, kept)| (*key, kept.pending.work.clone())).unzip();
        self.trying = true;
        Some(Round { keys, work, high, fresh_until: oldest + self.ack_wait })
    }

    /// Ends a round. `left`: the places of events that were refused again, and why.
    pub(crate) fn tried(
        &mut self,
        round: &Round,
        left: &BTreeSet<usize>,
        why: Option<Refusal>,
        now: Instant,
    ) -> Tried<A> {
        self.trying = false;
        let mut stored = Vec::new();
        for (place, key) in round.keys.iter().enumerate() {
            let Some(kept) = self.held.remove(key) else { continue };
            if left.contains(&place) { self.put_behind(kept) } else { stored.push(kept) }
        }
        let taken = left.len() < round.keys.len();
        self.delay = if taken { DELAYS.0 } else { (self.delay * 2).min(DELAYS.1) };
        self.try_at = if taken { now } else { now + self.delay };
        let unanswered = why.filter(|why| !why.is_an_answer());
        let since = unanswered.is_some().then(|| self.unanswered_since.unwrap_or(now));
        self.unanswered_since = since;
        let over = unanswered.filter(|_| since.is_some_and(|since| now.duration_since(since) > PATIENCE));
        Tried { stored, over }
    }

    /// Ends a round that panicked.
    pub(crate) fn panicked(&mut self, now: Instant) {
        self.trying = false;
        self.delay = (self.delay * 2).min(DELAYS.1);
        self.try_at = now + self.delay;
    }

    /// All events that are left.
    pub(crate) fn into_left(self) -> impl Iterator<Item = Kept<A>> {
        self.held.into_values()
    }

    fn put_behind(&mut self, kept: Kept<A>) {
        self.held.insert(self.next, kept);
        self.next += 1;
    }
}
