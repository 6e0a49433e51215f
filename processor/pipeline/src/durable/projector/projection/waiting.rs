//! The part of the projection for tasks that wait in NATS because their share of the memory is
//! full.
//!
//! A second feed reads look-ups again. Tasks that rest or wait for a retry are read by the
//! revisions of their records.

use taskpipeline_contract::TaskId;
use tokio::time::Instant;
use tracing::warn;

use super::{Action, Change, Landed, PAUSE, Projection, READ_AGAIN, Revision};
use crate::durable::projector::deferred::{IdHash, Why};
use crate::durable::projector::jobs::{FoundAt, Job};
use crate::durable::projector::shares::Share;

/// A shorter wait counts as waiting for a turn. It is as long as a request to a slow KV.
const SOON: std::time::Duration = std::time::Duration::from_secs(2);

impl Projection {
    /// When the rest of a task ends that the queue of writes does not know, or `None`.
    fn rests_until(&self, id: &TaskId, now: Instant) -> Option<Instant> {
        if self.schedule.writes.contains(id) {
            return None;
        }
        self.rests.until(id, self.tuning.min_write_interval, now)
    }

    /// Like [`Self::rests_until`], but `None` if the rest ends soon.
    pub(super) fn rests_long_until(&self, id: &TaskId, now: Instant) -> Option<Instant> {
        self.rests_until(id, now).filter(|until| *until > now + SOON)
    }

    /// Queues a task to be written as soon as it may be.
    pub(super) fn mark_write(&mut self, id: &TaskId, now: Instant) {
        match self.rests_until(id, now) {
            Some(until) if until > now + SOON && !self.unsettled.has_room_for(Share::Rest) => {
                self.unsettled.defer(id, until, Why::Rest);
            }
            Some(until) => {
                self.schedule.writes.mark_resting(id, until);
                self.unsettled.wait_for(id, if until > now + SOON { Share::Rest } else { Share::Write });
            }
            None => {
                self.schedule.writes.mark(id);
                let waits = matches!(self.unsettled.share(id), Some(Share::Rest | Share::Retry));
                if !(waits && self.schedule.writes.is_resting(id)) {
                    self.unsettled.wait_for(id, Share::Write);
                }
            }
        }
    }

    /// Makes a written task rest until `rested`.
    pub(super) fn rest_after(&mut self, id: &TaskId, landed: &Landed, rested: Instant, now: Instant) {
        let interval = self.tuning.min_write_interval;
        if interval <= SOON {
            self.schedule.writes.settle(id, rested);
        } else {
            self.rests.written(id, interval, now);
            match landed {
                Landed::Changed if self.unsettled.has_room_for(Share::Rest) => {
                    self.schedule.writes.settle(id, rested);
                    self.unsettled.wait_for(id, Share::Rest);
                }
                Landed::Changed => {
                    self.schedule.writes.forget(id);
                    self.unsettled.defer(id, rested, Why::Rest);
                }
                Landed::InDoubt | Landed::Settled => self.schedule.writes.forget(id),
            }
        }
        if *landed == Landed::InDoubt && !self.unsettled.has_room_for(Share::Doubt) {
            self.unsettled.defer_in_doubt(id);
        }
    }

    /// Makes a key that KV named as not written wait for its next attempt, without delaying others.
    pub(super) fn retry_later(&mut self, id: &TaskId, at: Instant, now: Instant) {
        if at <= now + SOON {
            self.schedule.writes.retry(id, at);
        } else if self.unsettled.has_room_for(Share::Retry) {
            self.schedule.writes.retry(id, at);
            self.unsettled.wait_for(id, Share::Retry);
        } else {
            self.schedule.writes.forget(id);
            self.unsettled.defer(id, at, Why::Retry);
        }
    }

    /// Starts to read the records of due tasks.
    pub(super) fn read_deferred(&mut self, now: Instant) {
        if !self.may_read_deferred() {
            return;
        }
        let due = self.unsettled.take_deferred(READ_AGAIN, now);
        if due.is_empty() {
            return;
        }
        self.reading_deferred = true;
        self.begin(Job::ReadAt(due));
    }

    pub(super) fn may_read_deferred(&self) -> bool {
        !self.reading_deferred && self.unsettled.has_room_to_come_back()
    }

    pub(super) fn was_read_at(&mut self, due: Vec<(IdHash, Revision)>, found: FoundAt, now: Instant) {
        self.reading_deferred = false;
        let mut found = match found {
            Ok(found) => found,
            Err(error) => {
                warn!(tasks = due.len(), %error, "cannot read due tasks from the ledger; retrying");
                return self.unsettled.unread_deferred(due.into_iter().map(|(hash, _)| hash), now + PAUSE);
            }
        };
        for (hash, revision) in due {
            match found.remove(&revision) {
                Some((id, known)) => {
                    if self.unsettled.found_deferred(hash, &id, known, now) {
                        self.route(&id, now);
                    }
                }
                None => self.unsettled.missed_deferred(hash, revision, now),
            }
        }
    }

    /// Starts to read the look-ups that were left in NATS.
    pub(super) fn follow_left(&mut self) {
        if !self.following
            && let Some(from) = self.unsettled.left_from()
        {
            self.following = true;
            self.actions.push_back(Action::FollowLeft(Revision(from.0.saturating_sub(1))));
        }
    }

    /// Returns whether there is room for look-ups that were left in NATS.
    pub(crate) fn wants_left(&self) -> bool {
        self.following && self.left.is_empty() && self.unsettled.has_room_for(Share::LookUp)
    }

    /// Adds the next changes of look-ups that were left in NATS.
    pub(crate) fn left(&mut self, changes: impl IntoIterator<Item = Change>, now: Instant) {
        self.left.extend(changes);
        self.take_in_left(now);
    }

    /// Takes in the changes of the second feed while there is room.
    pub(super) fn take_in_left(&mut self, now: Instant) {
        while let Some(change) = self.left.front() {
            let Some(is_ours) = self.unsettled.read_left(&change.id, &change.known, now) else { return };
            if let Some(change) = self.left.pop_front()
                && is_ours
            {
                self.route(&change.id, now);
            }
        }
        if self.following && self.unsettled.left_from().is_none() {
            self.following = false;
            self.actions.push_back(Action::LeaveLeft);
        }
    }
}
