//! The part of the projection that queues tasks by what KV needs for them, and sends what can be
//! sent.

use taskpipeline_contract::{TaskId, TaskKey};
use tokio::time::Instant;
use tracing::{enabled, info};

use super::{Action, Projection};
use crate::durable::crash;
use crate::durable::ledger::record::Due;
use crate::durable::projector::shares::Share;
use crate::schedule::Batch;
use crate::schedule::Request;
use taskpipeline_kv::Operation;
use taskpipeline_kv::Puts;

impl Projection {
    /// Queues a task by what KV needs for it.
    pub(super) fn route(&mut self, id: &TaskId, now: Instant) {
        let Some(record) = self.unsettled.record(id) else { return };
        match record.due(id) {
            Due::Put(_) | Due::Delete => {
                if self.schedule.reads.contains(id) {
                    // The read is not needed any more, and its failed attempts do not count for the
                    // write.
                    self.schedule.reads.withdraw(id);
                    self.unsettled.forgive(id);
                }
                self.mark_write(id, now);
            }
            Due::LookUp => {
                self.schedule.writes.withdraw(id);
                self.schedule.reads.mark(id);
                self.unsettled.wait_for(id, Share::LookUp);
            }
            Due::Nothing => {
                self.schedule.reads.withdraw(id);
                self.schedule.writes.withdraw(id);
                if !self.schedule.writes.is_in_flight(id) {
                    self.unsettled.ended(id);
                    self.finish(id);
                }
            }
        }
    }

    pub(super) fn send_what_can_be_sent(&mut self, now: Instant) {
        while let Some(batch) = self.schedule.next_batch(self.unsettled.has_room(), now) {
            match batch {
                Batch::Write(ids) => self.send_write(ids, now),
                Batch::Read(ids) => {
                    ids.iter().for_each(|id| self.announce(Operation::Get, id));
                    self.send(Request::Get(ids));
                }
                Batch::Control(request) => self.send(request),
            }
        }
    }

    fn send(&mut self, request: Request) {
        let flight = self.schedule.begin(request);
        self.actions.push_back(Action::Send(flight));
    }

    /// Takes the values at the last moment and sends puts. Deletes wait for other deletes, unless
    /// there is nothing else.
    fn send_write(&mut self, mut ids: Vec<TaskId>, now: Instant) {
        let mut puts = Puts::default();
        let mut gone = Vec::new();
        while !ids.is_empty() {
            for id in ids {
                match self.unsettled.record(&id).map(|record| record.due(&id)) {
                    Some(Due::Put(task)) => puts.push(&task),
                    Some(Due::Delete) => gone.push(id),
                    // A task without a known state is never deleted.
                    _ => self.schedule.writes.settle(&id, now),
                }
            }
            let room = if puts.is_empty() { 0 } else { self.schedule.room_beside(puts.ids().len()) };
            ids = self.schedule.more(room);
        }
        if !puts.is_empty() {
            for id in puts.ids() {
                self.unsettled.sent(id);
                self.announce(Operation::Put, id);
            }
            self.schedule.delete_soon(gone, now);
            crash::point("sending");
            self.send(Request::Put(puts));
        } else if !gone.is_empty() {
            for id in &gone {
                self.unsettled.sent(id);
                self.announce(Operation::Delete, id);
            }
            crash::point("sending");
            self.send(Request::Delete(gone));
        }
    }

    fn announce(&self, operation: Operation, id: &TaskId) {
        if !enabled!(tracing::Level::INFO) {
            return;
        }
        let (key, verb) = (TaskKey::new(id.clone()), operation.verb());
        let (attempt, most) = (self.unsettled.attempts(id) + 1, self.tuning.retry.max_attempts);
        let correlation_id = self.correlation_id(id);
        info!(correlation_id, operation = verb, %key, "writing");
        info!(correlation_id, attempt, max_attempts = most, "attempt");
    }
}
