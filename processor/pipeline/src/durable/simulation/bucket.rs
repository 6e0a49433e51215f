//! Simulates the stream under the ledger's bucket, on one server or three: compare-and-set by subject, times to live, limits.
//!
//! It answers a write with the bytes of nats-server, and the shipped code reads them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use taskpipeline_contract::TaskId;

use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::{Revision, Stored};
use crate::durable::ledger::record::Record;
use crate::durable::names::Names;

/// The writes that the stream refuses because it has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// `max_msgs` is reached: writes of new records; in a cluster, all writes.
    NewRecords,
    /// The account's limit is reached: all writes.
    Everything,
}

/// A stored record.
pub(super) struct Entry {
    pub(super) value: Bytes,
    pub(super) revision: Revision,
    /// The end of its time to live, in ms of the world.
    expires_at: Option<u64>,
    /// The decoded record, if it is a task's.
    pub(super) task: Option<(TaskId, Arc<Record>)>,
}

/// The simulated stream under the ledger's bucket.
pub(super) struct Bucket {
    names: Arc<Names>,
    clustered: bool,
    pub(super) newest: Revision,
    pub(super) records: BTreeMap<String, Entry>,
    /// Values that a replica of the stream still has, because it is behind.
    behind: BTreeMap<String, (Bytes, Revision)>,
    /// The subjects of writes that the leader has accepted and the cluster has not.
    proposed: Vec<String>,
    /// The time until which a new leader has not caught up.
    pub(super) not_ready_until: u64,
    pub(super) full: Option<(Full, u64)>,
}

impl Bucket {
    pub(super) fn new(names: Arc<Names>, clustered: bool) -> Self {
        Self {
            names,
            clustered,
            newest: Revision(0),
            records: BTreeMap::new(),
            behind: BTreeMap::new(),
            proposed: Vec::new(),
            not_ready_until: 0,
            full: None,
        }
    }

    /// Removes the records whose time to live has passed.
    pub(super) fn expire(&mut self, now: u64) {
        self.records.retain(|_, entry| entry.expires_at.is_none_or(|at| at > now));
        self.full = self.full.filter(|(_, until)| *until > now);
        self.behind.clear();
    }

    pub(super) fn get(&self, subject: &str) -> Option<Stored> {
        let entry = self.records.get(subject)?;
        Some(stored(subject, &entry.value, entry.revision))
    }

    /// Reads a record from a replica of the stream that is behind.
    pub(super) fn get_late(&self, subject: &str) -> Option<Stored> {
        match self.behind.get(subject) {
            Some((value, revision)) => Some(stored(subject, value, *revision)),
            None => self.get(subject),
        }
    }

    pub(super) fn get_at(&self, revision: Revision) -> Option<Stored> {
        let found = self.records.iter().find(|(_, entry)| entry.revision == revision);
        found.map(|(subject, entry)| stored(subject, &entry.value, entry.revision))
    }

    /// Reads all records of `subjects`, which ends with a wildcard for one token.
    pub(super) fn all(&self, subjects: &str) -> Vec<Stored> {
        let prefix = subjects.trim_end_matches('*');
        let found = self.records.range(prefix.to_owned()..);
        found
            .take_while(|(subject, _)| subject.starts_with(prefix))
            .map(|(subject, entry)| stored(subject, &entry.value, entry.revision))
            .collect()
    }

    /// Lists the tasks' records that were written after this revision, in their order.
    pub(super) fn changes(&self, after: Revision) -> Vec<(TaskId, Arc<Record>, Revision)> {
        let mut changes: Vec<_> = self
            .tasks()
            .filter(|(.., revision)| *revision > after)
            .map(|(id, record, revision)| (id.clone(), Arc::clone(record), revision))
            .collect();
        changes.sort_by_key(|(.., revision)| *revision);
        changes
    }

    /// Lists all tasks' records.
    pub(super) fn tasks(&self) -> impl Iterator<Item = (&TaskId, &Arc<Record>, Revision)> {
        self.records.values().filter_map(|entry| {
            let (id, record) = entry.task.as_ref()?;
            Some((id, record, entry.revision))
        })
    }

    /// Takes a write, and returns the immediate answer: a refusal, or the success of a single server.
    ///
    /// In a cluster, an accepted write has no answer yet: it is proposed, and later committed or dropped.
    pub(super) fn take(&mut self, write: &Write, now: u64) -> Option<Message> {
        let found = self.records.get(&write.subject).map_or(Revision(0), |entry| entry.revision);
        if let Some((Full::Everything, _)) = self.full {
            return Some(self.refuse(503, 10_023, "insufficient resources"));
        }
        if let Some(expected) = write.expected {
            if self.clustered && now < self.not_ready_until {
                let what = "expected last sequence per subject temporarily unavailable";
                return Some(self.refuse(503, 10_163, what));
            }
            if self.proposed.contains(&write.subject) {
                return Some(self.refuse(400, 10_164, "wrong last sequence"));
            }
            if expected != found {
                return Some(self.refuse(400, 10_071, &format!("wrong last sequence: {}", found.0)));
            }
        }
        // A cluster counts a write as one more message, whether or not it replaces one.
        if matches!(self.full, Some((Full::NewRecords, _))) && (self.clustered || found == Revision(0)) {
            return Some(self.refuse(503, 10_077, "maximum messages exceeded"));
        }
        if self.clustered {
            self.proposed.push(write.subject.clone());
            return None;
        }
        Some(self.store(write, now))
    }

    /// Commits a write that the cluster has accepted.
    pub(super) fn commit(&mut self, write: &Write, now: u64) -> Message {
        self.drop_proposed(&write.subject);
        self.store(write, now)
    }

    /// Drops a proposed write, which is lost.
    pub(super) fn drop_proposed(&mut self, subject: &str) {
        if let Some(place) = self.proposed.iter().position(|proposed| proposed == subject) {
            self.proposed.swap_remove(place);
        }
    }

    fn store(&mut self, write: &Write, now: u64) -> Message {
        self.newest.0 += 1;
        let value = Bytes::from(write.value.clone());
        // One that cannot be read is as none: only scenes write such.
        let record = serde_json::from_slice(&value).ok().map(Arc::new);
        let task = self.names.task_of(&write.subject).zip(record);
        let lives = write.time_to_live.map(|time| u64::try_from(time.as_millis()).unwrap());
        let entry = Entry { value, revision: self.newest, expires_at: lives.map(|ms| now + ms), task };
        if let Some(before) = self.records.insert(write.subject.clone(), entry) {
            self.behind.insert(write.subject.clone(), (before.value, before.revision));
        }
        message(format!(r#"{{"stream":"{}","seq":{}}}"#, self.names.ledger_stream, self.newest.0))
    }

    fn refuse(&self, code: u16, err_code: u16, description: &str) -> Message {
        message(format!(
            r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"{description}"}},"stream":"{}","seq":0}}"#,
            self.names.ledger_stream
        ))
    }
}

/// Returns the client's error for a subject that no server serves.
pub(super) fn no_responders() -> Message {
    Message { status: Some(StatusCode::NO_RESPONDERS), ..message(String::new()) }
}

fn message(payload: String) -> Message {
    Message {
        subject: "_INBOX.simulation".into(),
        reply: None,
        length: payload.len(),
        payload: payload.into(),
        headers: None,
        status: None,
        description: None,
    }
}

fn stored(subject: &str, value: &Bytes, revision: Revision) -> Stored {
    Stored { subject: subject.to_owned(), revision, value: value.clone() }
}
