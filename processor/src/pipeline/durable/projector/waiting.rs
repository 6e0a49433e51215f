//! The part of the projector that sees to what waits in NATS, since its share of the memory is full: look-ups, by a second
//! feed that takes in nothing else; and what rests or is to be tried again, by the revisions of its records.

use std::collections::HashMap;

use taskpipeline_contract::TaskId;
use tokio::time::Instant;
use tracing::warn;

use super::{Change, Done, Feed, Known, Landed, PAUSE, Projector, READ_AGAIN, Revision, feed};
use crate::kv::BulkApi;
use crate::pipeline::durable::deferred::{IdHash, Why};
use crate::pipeline::durable::ledger::LedgerError;
use crate::pipeline::durable::shares::Share;

/// What waits no longer than this counts as waiting for its turn: as much as a request to a slow KV takes.
const SOON: std::time::Duration = std::time::Duration::from_secs(2);

/// What was read for tasks that wait in NATS, by the revisions of their records.
pub(super) type FoundAt = Result<HashMap<Revision, (TaskId, Known)>, LedgerError>;

/// The next changes of the second feed, at least one.
pub(super) async fn next_left(second: &mut Option<Feed>, into: &mut Vec<Change>, most: usize) {
    match second {
        Some(feed) => feed.next(into, most).await,
        None => std::future::pending().await,
    }
}

impl<K: BulkApi> Projector<K> {
    /// Until when a task rests that the queue of writes does not know.
    pub(super) fn rests_until(&self, id: &TaskId, now: Instant) -> Option<Instant> {
        if self.dispatch.writes.contains(id) {
            return None;
        }
        self.rests.until(id, self.parts.tuning.min_write_interval, now)
    }

    /// The same, if that is long from now.
    pub(super) fn rests_long_until(&self, id: &TaskId, now: Instant) -> Option<Instant> {
        self.rests_until(id, now).filter(|until| *until > now + SOON)
    }

    /// A task is to be written: as soon as it may be.
    pub(super) fn mark_write(&mut self, id: &TaskId) {
        let now = Instant::now();
        match self.rests_until(id, now) {
            Some(until) if until > now + SOON && !self.unsettled.has_room_for(Share::Rest) => {
                self.unsettled.defer(id, until, Why::Rest);
            }
            Some(until) => {
                self.dispatch.writes.mark_resting(id, until);
                self.unsettled.wait_for(id, if until > now + SOON { Share::Rest } else { Share::Write });
            }
            None => {
                self.dispatch.writes.mark(id);
                let waits = matches!(self.unsettled.share(id), Some(Share::Rest | Share::Retry));
                if !(waits && self.dispatch.writes.is_resting(id)) {
                    self.unsettled.wait_for(id, Share::Write);
                }
            }
        }
    }

    /// A write of the task has landed, and it may not be written again until `rested`.
    pub(super) fn rest_after(&mut self, id: &TaskId, landed: &Landed, rested: Instant, now: Instant) {
        let interval = self.parts.tuning.min_write_interval;
        if interval <= SOON {
            self.dispatch.writes.settle(id, rested);
        } else {
            self.rests.written(id, interval, now);
            match landed {
                Landed::Changed if self.unsettled.has_room_for(Share::Rest) => {
                    self.dispatch.writes.settle(id, rested);
                    self.unsettled.wait_for(id, Share::Rest);
                }
                Landed::Changed => {
                    self.dispatch.writes.forget(id);
                    self.unsettled.defer(id, rested, Why::Rest);
                }
                Landed::InDoubt | Landed::Settled => self.dispatch.writes.forget(id),
            }
        }
        if *landed == Landed::InDoubt && !self.unsettled.has_room_for(Share::Doubt) {
            self.unsettled.defer_in_doubt(id);
        }
    }

    /// KV has named this key as not written: it waits for its next attempt without being in the way of any other.
    pub(super) fn retry_later(&mut self, id: &TaskId, at: Instant) {
        if at <= Instant::now() + SOON {
            self.dispatch.writes.retry(id, at);
        } else if self.unsettled.has_room_for(Share::Retry) {
            self.dispatch.writes.retry(id, at);
            self.unsettled.wait_for(id, Share::Retry);
        } else {
            self.dispatch.writes.forget(id);
            self.unsettled.defer(id, at, Why::Retry);
        }
    }

    /// Begins to read the records of tasks that are due.
    pub(super) fn read_deferred(&mut self) {
        if !self.may_read_deferred() {
            return;
        }
        let due = self.unsettled.take_deferred(READ_AGAIN, Instant::now());
        if due.is_empty() {
            return;
        }
        self.reading_deferred = true;
        let ledger = std::sync::Arc::clone(&self.parts.ledger);
        self.beside.spawn(async move {
            let found = ledger.read_at(due.iter().map(|(_, revision)| *revision).collect()).await;
            Done::ReadAt(due, found)
        });
    }

    pub(super) fn may_read_deferred(&self) -> bool {
        !self.reading_deferred && self.unsettled.has_room_to_come_back()
    }

    pub(super) fn was_read_at(&mut self, due: Vec<(IdHash, Revision)>, found: FoundAt) {
        self.reading_deferred = false;
        let now = Instant::now();
        let mut found = match found {
            Ok(found) => found,
            Err(error) => {
                warn!(tasks = due.len(), %error, "cannot read tasks that are due from the ledger; retrying");
                return self.unsettled.unread_deferred(due.into_iter().map(|(hash, _)| hash), now + PAUSE);
            }
        };
        for (hash, revision) in due {
            match found.remove(&revision) {
                Some((id, known)) => {
                    if self.unsettled.found_deferred(hash, &id, known, now) {
                        self.route(&id);
                    }
                }
                None => self.unsettled.missed_deferred(hash, revision, now),
            }
        }
    }

    /// Begins to read the look-ups that were left in NATS.
    pub(super) fn follow_left(&mut self) {
        if self.second.is_none()
            && let Some(from) = self.unsettled.left_from()
        {
            self.second = Some(feed(&self.parts, Revision(from.0.saturating_sub(1))));
        }
    }

    pub(super) fn may_read_left(&self) -> bool {
        self.second.is_some() && self.left.is_empty() && self.unsettled.has_room_for(Share::LookUp)
    }

    /// Takes in what the second feed has read, as far as there is room.
    pub(super) fn take_in_left(&mut self) {
        let now = Instant::now();
        while let Some(change) = self.left.front() {
            let Some(is_ours) = self.unsettled.read_left(&change.id, &change.known, now) else { return };
            if let Some(change) = self.left.pop_front()
                && is_ours
            {
                self.route(&change.id);
            }
        }
        if self.unsettled.left_from().is_none() {
            self.second = None;
        }
    }
}
