//! Puts the calls of a step to any NATS, through the traits of the shipped code.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::world::task;
use super::step::{SUBJECTS, Step};
use crate::dead_letters::Letter;
use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::{ReadError, Revision, Stored, WriteError};
use crate::durable::control::register::Register;
use crate::durable::ledger::store::{LetterBox, Store};
use crate::durable::names::Names;
use crate::durable::stream::agreement::EventStream;
use crate::durable::stream::incarnation::Life;

pub(super) fn subject(names: &Names, n: usize) -> String {
    names.high_water(&format!("replica-{n}"))
}

fn letter(names: &Names, id: u64) -> Letter {
    let value = Bytes::from_static(b"{");
    let stored = Stored { subject: "of a record".to_owned(), revision: Revision(id), value };
    Letter::of_record(names, &task(0), &stored, "broken")
}

/// A NATS that runs the script.
pub(super) struct Asked<B, L> {
    pub(super) bucket: B,
    pub(super) letters: L,
    pub(super) names: Arc<Names>,
    /// The answers so far, a line for each call.
    pub(super) said: Vec<String>,
}

fn written(result: Result<Revision, WriteError>) -> String {
    match result {
        Ok(revision) => format!("written as {}", revision.0),
        Err(error) => error.to_string(),
    }
}

fn record(stored: &Stored) -> String {
    format!("{} {}: {:?}", stored.subject, stored.revision.0, stored.value)
}

fn records(mut found: Vec<Stored>) -> String {
    found.sort_by_key(|stored| stored.revision);
    found.iter().map(record).collect::<Vec<_>>().join("; ")
}

fn or_error<T>(result: Result<T, impl Display>, say: impl FnOnce(T) -> String) -> String {
    result.map_or_else(|error| format!("error: {error}"), say)
}

fn read(found: Result<Option<Stored>, ReadError>) -> String {
    or_error(found, |found| found.as_ref().map_or_else(|| "none".to_owned(), record))
}

impl<B: Register + Store, L: LetterBox> Asked<B, L> {
    pub(super) fn new(bucket: B, letters: L, names: &Arc<Names>) -> Self {
        Self { bucket, letters, names: Arc::clone(names), said: Vec::new() }
    }

    pub(super) fn write(&self, n: usize, expected: Option<Revision>, value: &str) -> Write {
        let subject = subject(&self.names, n);
        Write { subject, value: value.as_bytes().to_vec(), expected, time_to_live: None }
    }

    pub(super) async fn revision(&self, n: usize) -> Revision {
        let found = self.bucket.get(&subject(&self.names, n)).await.unwrap();
        found.map_or(Revision(0), |found| found.revision)
    }

    /// Runs a step that concerns the ledger or the dead letters. `value` is the value to write.
    pub(super) async fn ledger(&self, step: &Step, value: &str) -> String {
        match step {
            Step::Set { subject: n, off } => {
                let expected = Revision(self.revision(*n).await.0 + off);
                let subject = subject(&self.names, *n);
                written(self.bucket.compare_and_set(subject, value.as_bytes().to_vec(), expected, None).await)
            }
            Step::Overwrite { subject } => {
                let write = self.write(*subject, None, value);
                let outcomes = self.bucket.each([((), Ok(write))].into_iter()).await;
                or_error(outcomes, |outcomes| outcomes.into_iter().map(|(_, it)| written(it)).collect())
            }
            Step::Both { subject } => {
                let expected = Some(self.revision(*subject).await);
                let writes = [0, 1].map(|n| (n, Ok(self.write(*subject, expected, value))));
                let outcomes = self.bucket.each(writes.into_iter()).await;
                or_error(outcomes, |mut outcomes| {
                    outcomes.sort_by_key(|(n, _)| *n);
                    outcomes.into_iter().map(|(_, it)| written(it)).collect::<Vec<_>>().join("; ")
                })
            }
            Step::Expire { subject: n } => {
                let (expected, lives) = (self.revision(*n).await, Some(Duration::from_secs(1)));
                let subject = subject(&self.names, *n);
                written(
                    self.bucket.compare_and_set(subject, value.as_bytes().to_vec(), expected, lives).await,
                )
            }
            Step::Read { subject: n } => read(self.bucket.get(&subject(&self.names, *n)).await),
            Step::ReadAt { behind } => {
                let newest = self.bucket.newest().await.unwrap();
                let at = newest.0.saturating_sub(*behind).max(1);
                format!("newest {}, {}", newest.0, read(self.bucket.get_at(Revision(at)).await))
            }
            Step::ReadMany => {
                let subjects: Vec<_> = (0..SUBJECTS + 1).map(|n| subject(&self.names, n)).collect();
                or_error(self.bucket.get_many(&subjects).await, records)
            }
            Step::ReadAll => or_error(self.bucket.all(&self.names.high_waters()).await, records),
            Step::Letter { id } => {
                let stored = self.letters.store(&letter(&self.names, *id)).await;
                or_error(stored, |()| "stored".to_owned())
            }
            other => panic!("{other:?} is not a step of the ledger"),
        }
    }

    /// Runs a step that concerns the stream of the events or its consumers.
    pub(super) async fn events<E: EventStream>(&self, step: &Step, events: &E) -> String {
        match step {
            Step::Present => or_error(events.present().await, |it| format!("{} to {}", it.first, it.last)),
            Step::Event { sequence } => {
                let time = or_error(events.time_at(*sequence).await, |time| time.is_some().to_string());
                let next = events.next(*sequence).await;
                let next = or_error(next, |next| format!("{:?}", next.map(|(sequence, _)| sequence)));
                format!("there: {time}, next: {next}")
            }
            Step::Consumer { incarnation, read_from } => {
                let life = Life { incarnation: *incarnation, from: 0, read_from: *read_from };
                or_error(events.consumer(life).await, |(_, made)| format!("made: {made}"))
            }
            Step::DeleteConsumer { incarnation } => {
                events.delete_consumer(&self.names.consumer(*incarnation)).await;
                "done".to_owned()
            }
            Step::Consumers => or_error(events.consumers().await, |mut names| {
                names.sort();
                names.join(", ")
            }),
            other => panic!("{other:?} is not a step of the stream"),
        }
    }
}
