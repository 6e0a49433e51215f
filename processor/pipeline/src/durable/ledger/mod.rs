//! The ledger: the latest state of each task, in a bucket. Any replica may write any record, by
//! compare-and-set.
//!
//! After a conflict the ledger reads and folds again. It does not decide what is written to KV.
pub(crate) mod cache;
pub(crate) mod feed;
mod letter;
pub(crate) mod record;
pub(crate) mod store;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use taskpipeline_contract::{Task, TaskId};
use tracing::{debug, warn};

use crate::dead_letters::Letter;
use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::{Bucket, ReadError, Stored, WriteError};
use crate::durable::crash;
use crate::durable::dead_letters::{DeadLetters, LetterError};
use crate::durable::ledger::cache::{Cache, Known};
use crate::durable::ledger::record::{Due, Record, Settler};
use crate::durable::ledger::store::{LetterBox, Store};
use crate::durable::names::Names;
use crate::telemetry::metrics::Metrics;

pub(crate) use crate::durable::bucket::Revision;

/// The most attempts of a write before its events are left for another delivery.
const MOST_TRIES: u32 = 50;

/// The longest wait between two attempts.
const MOST_PAUSE: Duration = Duration::from_millis(500);

/// The most records that are read by their revisions at a time.
const READS_AT_A_TIME: usize = 64;

/// The approximate length of the JSON of a record without its texts.
const BYTES_BESIDE_TEXTS: usize = 512;

/// Why a read or a write of the ledger failed. Nothing is lost, and a later attempt may succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(
        "cannot read the record {subject} of the ledger: {reason}. Check whether another program writes to the ledger"
    )]
    Foreign { subject: String, reason: String },
    #[error(transparent)]
    Letter(#[from] LetterError),
}

/// Tasks whose records NATS does not accept.
#[derive(Debug)]
pub(crate) struct NotStored {
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) why: LedgerError,
}

/// Reads and writes the records of tasks, and folds again after a conflict.
pub(crate) struct Ledger<S = Bucket, L = DeadLetters> {
    bucket: S,
    names: Arc<Names>,
    letters: L,
    metrics: Arc<Metrics>,
    cache: Cache,
    /// How many of the last 1,000 creates that were written without a read found a record.
    surprises: AtomicU32,
}

impl<S: Store, L: LetterBox> Ledger<S, L> {
    pub(crate) fn new(bucket: S, names: Arc<Names>, letters: L, metrics: Arc<Metrics>, cache: Cache) -> Self {
        Self { bucket, names, letters, metrics, cache, surprises: AtomicU32::new(0) }
    }

    /// The bucket, for records that do not belong to a task.
    pub(crate) fn bucket(&self) -> &S {
        &self.bucket
    }

    /// Empties the cache at the start of a session: the server may have been restored, and cached
    /// records may not exist.
    pub(crate) fn forget_all(&self) {
        self.cache.forget_all();
    }

    /// Folds these records into those of the ledger. All of them are stored afterwards.
    ///
    /// # Errors
    /// If NATS does not accept some of them; the others are stored. A record may be applied again
    /// without harm.
    pub(crate) async fn apply(
        &self,
        records: impl IntoIterator<Item = (TaskId, Arc<Record>)>,
    ) -> Result<(), NotStored> {
        let mut contended: Vec<_> = records.into_iter().collect();
        let (mut left, mut why) = (Vec::new(), None);
        for tries in 0..MOST_TRIES {
            if tries > 1 {
                let pause = Duration::from_millis(2) * 2_u32.pow(tries.min(8));
                let bucket = &self.bucket;
                bucket.sleep(pause.min(MOST_PAUSE).mul_f64(bucket.dice())).await;
            }
            let outcome = self.try_to_apply(std::mem::take(&mut contended), tries).await;
            left.extend(outcome.left);
            why = outcome.why.or(why);
            contended = outcome.contended;
            if contended.is_empty() {
                break;
            }
            debug!(records = contended.len(), attempt = tries + 1, "folding contended records again");
        }
        if !contended.is_empty() {
            why.get_or_insert(WriteError::Conflict.into());
            left.append(&mut contended);
        }
        match why {
            Some(why) => Err(NotStored { tasks: left.into_iter().map(|(id, _)| id).collect(), why }),
            None => Ok(()),
        }
    }

    async fn try_to_apply(&self, records: Vec<(TaskId, Arc<Record>)>, tries: u32) -> Tried {
        struct Pending {
            id: TaskId,
            record: Arc<Record>,
            merged: Arc<Record>,
            expected: Revision,
        }
        let mut tried = Tried::default();
        let (known, unread) = self.known(&records, tries).await;
        let mut unreadable = HashSet::new();
        if let Some((ids, error)) = unread {
            unreadable.extend(ids);
            tried.why = Some(error);
        }
        let mut left = Vec::new();
        let pending = records.iter().cloned().filter_map(|(id, record)| {
            if unreadable.contains(&id) {
                left.push((id, record));
                return None;
            }
            let (merged, expected) = match known.get(&id) {
                Some(Slot::Known(known)) => {
                    let mut merged = Record::clone(&known.record);
                    if !merged.merge(&record) {
                        return None;
                    }
                    merged.follows = known.revision;
                    (Arc::new(merged), known.revision)
                }
                Some(Slot::Vacant(revision)) => (Arc::clone(&record), *revision),
                None => (Arc::clone(&record), Revision::default()),
            };
            let write = self.write(&id, &merged, expected, None);
            Some((Pending { id, record, merged, expected }, write))
        });
        let outcomes = match self.bucket.each(pending).await {
            Ok(outcomes) => outcomes,
            Err(error) => return Tried { left: records, why: Some(error.into()), ..tried },
        };
        for (write, outcome) in outcomes {
            let Pending { id, record, merged, expected } = write;
            if expected == Revision::default() && tries == 0 {
                self.note_surprise(matches!(&outcome, Err(error) if error.is_contended()));
            }
            let failed = match outcome {
                Ok(revision) => {
                    self.cache.put(&id, Known { record: merged, revision });
                    continue;
                }
                Err(failed) => failed,
            };
            // The cached record is old.
            self.cache.forget(&id);
            if failed.is_contended() {
                self.metrics.ledger_conflicts.inc();
                tried.contended.push((id, record));
            } else {
                tried.left.push((id, record));
                tried.why = Some(failed.into());
            }
        }
        tried.left.append(&mut left);
        tried
    }

    /// The records of these tasks. Tasks without a record are left out.
    pub(crate) async fn read(&self, ids: &[TaskId]) -> Result<HashMap<TaskId, Known>, LedgerError> {
        let mut known = HashMap::with_capacity(ids.len());
        for (id, stored) in self.stored(ids).await? {
            match decode(&stored) {
                Ok(Found::Record(record)) => {
                    known.insert(id, record);
                }
                Ok(Found::Empty) => {}
                // The next event of the task replaces the record, and a dead letter keeps it.
                Err(error) => warn!(%error, "cannot read a record of the ledger"),
            }
        }
        Ok(known)
    }

    /// The records with these revisions, and their tasks. Replaced records are left out.
    pub(crate) async fn read_at(
        &self,
        revisions: Vec<Revision>,
    ) -> Result<HashMap<Revision, (TaskId, Known)>, LedgerError> {
        let reading = revisions.into_iter().map(|revision| self.bucket.get_at(revision));
        let mut answers = futures_util::stream::iter(reading).buffer_unordered(READS_AT_A_TIME);
        let mut found = HashMap::new();
        while let Some(answer) = answers.next().await {
            let Some(stored) = answer? else { continue };
            let Some(id) = self.names.task_of(&stored.subject) else { continue };
            // The feed handles a message that is not a record.
            if let Ok(Found::Record(known)) = decode(&stored) {
                found.insert(stored.revision, (id, known));
            }
        }
        Ok(found)
    }

    /// Like [`Self::read`], but reads missing records again from the leader of the stream, because
    /// another server may be behind.
    pub(crate) async fn read_surely(&self, ids: &[TaskId]) -> Result<HashMap<TaskId, Known>, LedgerError> {
        let mut known = self.read(ids).await?;
        for id in ids {
            if !known.contains_key(id)
                && let Some(found) = self.newest(id).await?
            {
                known.insert(id.clone(), found);
            }
        }
        Ok(known)
    }

    async fn stored(&self, ids: &[TaskId]) -> Result<Vec<(TaskId, Stored)>, ReadError> {
        let subjects: Vec<_> = ids.iter().map(|id| self.names.task(id)).collect();
        let stored = self.bucket.get_many(&subjects).await?.into_iter();
        Ok(stored.filter_map(|stored| Some((self.names.task_of(&stored.subject)?, stored))).collect())
    }

    /// The present contents of the places of these records, to be overwritten.
    async fn slots(&self, ids: &[TaskId]) -> Result<HashMap<TaskId, Slot>, LedgerError> {
        let mut slots = HashMap::with_capacity(ids.len());
        for (id, stored) in self.stored(ids).await? {
            let slot = match decode(&stored) {
                Ok(Found::Record(known)) => Slot::Known(known),
                Ok(Found::Empty) => Slot::Vacant(stored.revision),
                Err(error) => {
                    self.set_aside(&id, &stored, &error).await?;
                    Slot::Vacant(stored.revision)
                }
            };
            slots.insert(id, slot);
        }
        Ok(slots)
    }

    /// Stores an unreadable record as a dead letter before it is overwritten.
    async fn set_aside(&self, id: &TaskId, stored: &Stored, error: &LedgerError) -> Result<(), LedgerError> {
        warn!(%error, "replaced an unreadable record of the ledger; a dead letter keeps it");
        self.letters.store(&Letter::of_record(&self.names, id, stored, &error.to_string())).await?;
        Ok(())
    }

    /// Records the task that KV had before any event, if that is still unknown.
    ///
    /// Returns the replaced revision of its record, or `None` if nothing was written.
    pub(crate) async fn join(
        &self,
        id: &TaskId,
        known_to_kv: Option<&Task>,
    ) -> Result<Option<Revision>, LedgerError> {
        let joined = |known: Option<&Record>| {
            let mut record = known?.clone();
            record.join(known_to_kv).then_some(record)
        };
        self.change(id, joined).await
    }

    /// The record of one task from the leader of the stream, for decisions that an old record would
    /// spoil.
    pub(crate) async fn newest(&self, id: &TaskId) -> Result<Option<Known>, LedgerError> {
        let Some(stored) = self.bucket.get(&self.names.task(id)).await? else { return Ok(None) };
        match decode(&stored) {
            Ok(Found::Record(known)) => Ok(Some(known)),
            Ok(Found::Empty) => Ok(None),
            Err(error) => {
                warn!(%error, "cannot read a record of the ledger");
                Ok(None)
            }
        }
    }

    /// Writes the record of a task again unchanged, so that the projector writes the task again.
    ///
    /// The new record has no time to live. Returns whether there was a record.
    pub(crate) async fn touch(&self, id: &TaskId) -> Result<bool, LedgerError> {
        let changed = self.change(id, |known| Some(Record { expires_by: None, ..known?.clone() })).await?;
        Ok(changed.is_some())
    }

    /// Writes a tombstone for a task that only KV has, unless the ledger knows the task by now.
    /// Returns whether it did.
    pub(crate) async fn write_tombstone(&self, id: &TaskId, tombstone: &Record) -> Result<bool, LedgerError> {
        let tombstoned = |known: Option<&Record>| match known {
            None => Some(tombstone.clone()),
            // Updates of a task that KV did not have when it was read.
            Some(known) if known.due(id) == Due::Nothing => {
                let mut record = Record { expires_by: None, ..known.clone() };
                record.task.merge(&tombstone.task);
                Some(record)
            }
            Some(_) => None,
        };
        Ok(self.change(id, tombstoned).await?.is_some())
    }

    /// Reads a record, and writes the result of `becomes`, until no other write comes in between.
    ///
    /// Returns the replaced revision, which is 0 without a record, or `None` if nothing was
    /// written.
    async fn change(
        &self,
        id: &TaskId,
        becomes: impl Fn(Option<&Record>) -> Option<Record> + Send,
    ) -> Result<Option<Revision>, LedgerError> {
        let mut tries = 0;
        loop {
            let stored = self.bucket.get(&self.names.task(id)).await?;
            let expected = stored.as_ref().map_or_else(Revision::default, |stored| stored.revision);
            let known = match stored.as_ref().map(|stored| (stored, decode(stored))) {
                Some((_, Ok(Found::Record(known)))) => Some(known),
                Some((_, Ok(Found::Empty))) | None => None,
                Some((stored, Err(error))) => {
                    self.set_aside(id, stored, &error).await?;
                    None
                }
            };
            let Some(mut record) = becomes(known.as_ref().map(|known| &*known.record)) else {
                return Ok(None);
            };
            record.follows = expected;
            let (subject, value) = (self.names.task(id), json(&record)?);
            let outcome = self.bucket.compare_and_set(subject, value, expected, None).await;
            self.cache.forget(id);
            match outcome {
                Ok(_) => return Ok(Some(expected)),
                Err(error) if tries >= 9 => return Err(error.into()),
                Err(_) => tries += 1,
            }
            self.bucket.sleep(Duration::from_millis(20).mul_f64(self.bucket.dice())).await;
        }
    }

    /// Gives each of these records a time to live, if its revision is still the same. Changed
    /// records need none.
    ///
    /// Returns the records that NATS did not accept, and why.
    pub(crate) async fn expire(
        &self,
        records: Vec<(TaskId, Known)>,
        by: &Settler,
        time_to_live: Duration,
    ) -> (Vec<(TaskId, Known)>, Option<LedgerError>) {
        let writes = records.clone().into_iter().map(|(id, known)| {
            let mut record = Record::clone(&known.record);
            (record.expires_by, record.follows) = (Some(by.clone()), known.revision);
            let write = self.write(&id, &record, known.revision, Some(time_to_live));
            ((id, known), write)
        });
        let outcomes = match self.bucket.each(writes).await {
            Ok(outcomes) => outcomes,
            Err(error) => return (records, Some(error.into())),
        };
        let (mut left, mut error) = (Vec::new(), None);
        for ((id, known), outcome) in outcomes {
            self.cache.forget(&id);
            match outcome {
                Ok(_) => crash::point("expiring"),
                Err(WriteError::Conflict) => {}
                Err(failed) => {
                    error = Some(failed.into());
                    left.push((id, known));
                }
            }
        }
        (left, error)
    }

    /// The records before a write: from the cache in the first attempt, and read after a conflict.
    ///
    /// Also returns the tasks whose records cannot be read at the moment, and why.
    async fn known(
        &self,
        records: &[(TaskId, Arc<Record>)],
        tries: u32,
    ) -> (HashMap<TaskId, Slot>, Option<(Vec<TaskId>, LedgerError)>) {
        let mut known = HashMap::with_capacity(records.len());
        let mut unknown = Vec::new();
        let creates_look = self.surprises.load(Ordering::Relaxed) > 300;
        for (id, record) in records {
            match self.cache.get(id) {
                Some(cached) if tries == 0 => {
                    known.insert(id.clone(), Slot::Known(cached));
                }
                // Most creates are of new tasks, which have no record to read.
                _ if tries == 0 && !creates_look && record.task.is_created() => {}
                _ => unknown.push(id.clone()),
            }
        }
        if unknown.is_empty() {
            return (known, None);
        }
        match self.slots(&unknown).await {
            Ok(slots) => {
                known.extend(slots);
                (known, None)
            }
            Err(error) => (known, Some((unknown, error))),
        }
    }

    fn note_surprise(&self, surprised: bool) {
        let before = self.surprises.load(Ordering::Relaxed);
        let after = if surprised { before + (1_000 - before) / 32 } else { before - before / 32 };
        self.surprises.store(after, Ordering::Relaxed);
    }

    fn write(
        &self,
        id: &TaskId,
        record: &Record,
        expected: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Write, WriteError> {
        let (subject, value) = (self.names.task(id), json(record)?);
        Ok(Write { subject, value, expected: Some(expected), time_to_live })
    }
}

fn json(record: &Record) -> Result<Vec<u8>, WriteError> {
    let mut bytes = Vec::with_capacity(record.text_bytes() + BYTES_BESIDE_TEXTS);
    serde_json::to_writer(&mut bytes, record)
        .map_err(|error| WriteError::Unknown(format!("cannot encode a record as JSON: {error}")))?;
    Ok(bytes)
}

/// The contents of the place of a record.
enum Slot {
    Known(Known),
    /// No valid record; the revision of what is there.
    Vacant(Revision),
}

/// A message in the place of a record.
enum Found {
    Record(Known),
    /// The marker of a record that somebody has deleted (`nats kv del`).
    Empty,
}

/// The outcome of an attempt to write some records.
#[derive(Default)]
struct Tried {
    /// Other replicas write these records too.
    contended: Vec<(TaskId, Arc<Record>)>,
    /// NATS does not accept these records, or they cannot be read.
    left: Vec<(TaskId, Arc<Record>)>,
    why: Option<LedgerError>,
}

fn decode(stored: &Stored) -> Result<Found, LedgerError> {
    if stored.value.is_empty() {
        return Ok(Found::Empty);
    }
    let record = serde_json::from_slice(&stored.value).map_err(|error| LedgerError::Foreign {
        subject: stored.subject.clone(),
        reason: error.to_string(),
    })?;
    Ok(Found::Record(Known { record: Arc::new(record), revision: stored.revision }))
}
