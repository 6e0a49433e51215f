//! The ledger: the latest state of each task, in a bucket of which any replica may write any record, by
//! compare-and-set. A conflict is read again and folded again. Decides nothing about what is written to KV.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use taskpipeline_contract::{Task, TaskId};
use tracing::debug;

use super::bucket::{Bucket, ReadError, Stored, WriteError};
use super::cache::{Cache, Known};
use super::crash;
use super::lanes::Write;
use super::names::Names;
use super::record::{Due, Record};

pub(super) use super::bucket::Revision;

/// How often a write is tried again before its events are left for another delivery.
const MOST_TRIES: u32 = 50;

/// The longest wait between two tries.
const MOST_PAUSE: Duration = Duration::from_millis(500);

/// How many records are read by their revisions at a time.
const READS_AT_A_TIME: usize = 64;

/// How long a record's JSON is besides its texts, about.
const BYTES_BESIDE_TEXTS: usize = 512;

/// Why the ledger does not say or take what it should; nothing is lost, and it may be asked again.
#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the ledger's record {subject} cannot be read: {reason}. Was it written by something else?")]
    Foreign { subject: String, reason: String },
}

/// See the module's head.
pub(super) struct Ledger {
    bucket: Bucket,
    names: Arc<Names>,
    cache: Cache,
    /// Of 1,000 creates written without looking, how many found something there, lately.
    surprises: AtomicU32,
}

impl Ledger {
    pub(super) fn new(bucket: Bucket, names: Arc<Names>) -> Self {
        Self { bucket, names, cache: Cache::new(), surprises: AtomicU32::new(0) }
    }

    /// The bucket itself, for records that are no task's.
    pub(super) fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// The connection was lost: the server may have been thrown back, and what was read may never have been.
    pub(super) fn forget_all(&self) {
        self.cache.forget_all();
    }

    /// Folds what these records say into the ledger's. When it is done, all of them are stored.
    ///
    /// # Errors
    /// Where NATS does not take them. Some may have been stored; it does no harm to apply them again.
    pub(super) async fn apply(
        &self,
        records: impl IntoIterator<Item = (TaskId, Record)>,
    ) -> Result<(), LedgerError> {
        let mut left: Vec<_> = records.into_iter().map(|(id, record)| (id, Arc::new(record))).collect();
        let mut tries = 0;
        loop {
            let (conflicts, error) = self.try_to_apply(left, tries).await?;
            let Some(error) = error else { return Ok(()) };
            tries += 1;
            let is_conflict = matches!(error, LedgerError::Write(WriteError::Conflict));
            if tries >= MOST_TRIES || (!is_conflict && tries >= 3) {
                return Err(error);
            }
            debug!("{} records are folded again, the {tries}. time: {error}", conflicts.len());
            if tries > 1 {
                let pause = Duration::from_millis(2) * 2_u32.pow(tries.min(8));
                tokio::time::sleep(pause.min(MOST_PAUSE).mul_f64(rand::random())).await;
            }
            left = conflicts;
        }
    }

    /// Answers what is left to be stored, and why.
    async fn try_to_apply(
        &self,
        records: Vec<(TaskId, Arc<Record>)>,
        tries: u32,
    ) -> Result<(Vec<(TaskId, Arc<Record>)>, Option<LedgerError>), LedgerError> {
        struct Pending {
            id: TaskId,
            record: Arc<Record>,
            merged: Arc<Record>,
            expected: Revision,
        }
        let known = self.known(&records, tries).await?;
        let writes = records.into_iter().filter_map(|(id, record)| {
            let (merged, expected) = match known.get(&id) {
                Some(known) => {
                    let mut merged = Record::clone(&known.record);
                    if !merged.merge(&record) {
                        return None;
                    }
                    merged.follows = known.revision;
                    (Arc::new(merged), known.revision)
                }
                None => (Arc::clone(&record), Revision::default()),
            };
            let write = self.write(&id, &merged, expected, None);
            Some((Pending { id, record, merged, expected }, write))
        });
        let (mut left, mut error) = (Vec::new(), None);
        for (write, outcome) in self.bucket.writes().await?.each(writes).await {
            let Pending { id, record, merged, expected } = write;
            if expected == Revision::default() && tries == 0 {
                self.note_surprise(matches!(outcome, Err(WriteError::Conflict)));
            }
            match outcome {
                Ok(revision) => self.cache.put(&id, Known { record: merged, revision }),
                Err(failed) => {
                    // What the cache says is not so any more.
                    self.cache.forget(&id);
                    error = Some(failed.into());
                    left.push((id, record));
                }
            }
        }
        Ok((left, error))
    }

    /// What the ledger holds for these tasks; what has no record is missing.
    pub(super) async fn read(&self, ids: &[TaskId]) -> Result<HashMap<TaskId, Known>, LedgerError> {
        let subjects: Vec<_> = ids.iter().map(|id| self.names.task(id)).collect();
        let mut known = HashMap::with_capacity(ids.len());
        for stored in self.bucket.get_many(&subjects).await? {
            let Some(id) = self.names.task_of(&stored.subject) else { continue };
            known.insert(id, decode(&stored)?);
        }
        Ok(known)
    }

    /// The records that were written at these revisions, with the tasks that they are of; what was replaced since is
    /// missing.
    pub(super) async fn read_at(
        &self,
        revisions: Vec<Revision>,
    ) -> Result<HashMap<Revision, (TaskId, Known)>, LedgerError> {
        let reading = revisions.into_iter().map(|revision| self.bucket.get_at(revision));
        let mut answers = futures_util::stream::iter(reading).buffer_unordered(READS_AT_A_TIME);
        let mut found = HashMap::new();
        while let Some(answer) = answers.next().await {
            let Some(stored) = answer? else { continue };
            let Some(id) = self.names.task_of(&stored.subject) else { continue };
            found.insert(stored.revision, (id, decode(&stored)?));
        }
        Ok(found)
    }

    /// Records what KV knew of a task before any event, if that is still not known. Answers which revision of its
    /// record was replaced by that; nothing, if none was.
    pub(super) async fn join(
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

    /// What the stream's leader holds for one task: for decisions, where being a little behind would matter.
    pub(super) async fn newest(&self, id: &TaskId) -> Result<Option<Known>, LedgerError> {
        self.bucket.get(&self.names.task(id)).await?.as_ref().map(decode).transpose()
    }

    /// Writes a task's record once more as it is, so that the projector takes it up again. It lives on for
    /// that, should it have had a time to live. Answers whether there is one.
    pub(super) async fn touch(&self, id: &TaskId) -> Result<bool, LedgerError> {
        let changed = self.change(id, |known| Some(Record { expires_by: None, ..known?.clone() })).await?;
        Ok(changed.is_some())
    }

    /// Records that a task which only KV knows is to be gone, unless something is known of it by now. Answers
    /// whether it was recorded.
    pub(super) async fn entomb(&self, id: &TaskId, tombstone: &Record) -> Result<bool, LedgerError> {
        let entombed = |known: Option<&Record>| match known {
            None => Some(tombstone.clone()),
            // Updates of a task that KV did not know when it was asked.
            Some(known) if known.due(id) == Due::Nothing => {
                let mut record = Record { expires_by: None, ..known.clone() };
                record.task.merge(&tombstone.task);
                Some(record)
            }
            Some(_) => None,
        };
        Ok(self.change(id, entombed).await?.is_some())
    }

    /// Reads a record and writes what becomes of it, until nothing came between. Answers the revision that was replaced,
    /// 0 where there was none; nothing, if nothing was to be written.
    async fn change(
        &self,
        id: &TaskId,
        becomes: impl Fn(Option<&Record>) -> Option<Record> + Send,
    ) -> Result<Option<Revision>, LedgerError> {
        let mut tries = 0;
        loop {
            let known = self.newest(id).await?;
            let expected = known.as_ref().map_or_else(Revision::default, |known| known.revision);
            let Some(mut record) = becomes(known.as_ref().map(|known| &*known.record)) else {
                return Ok(None);
            };
            record.follows = expected;
            let outcome =
                self.bucket.compare_and_set(self.names.task(id), json(&record)?, expected, None).await;
            self.cache.forget(id);
            match outcome {
                Ok(_) => return Ok(Some(expected)),
                Err(error) if tries >= 9 => return Err(error.into()),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(20).mul_f64(rand::random())).await;
        }
    }

    /// Gives these records a time to live, each if it still is the one of its revision; one that has changed need not
    /// have one. Answers those that NATS did not take, and why.
    pub(super) async fn expire(
        &self,
        records: Vec<(TaskId, Known)>,
        term: u64,
        time_to_live: Duration,
    ) -> (Vec<(TaskId, Known)>, Option<LedgerError>) {
        let writes = match self.bucket.writes().await {
            Ok(writes) => writes,
            Err(error) => return (records, Some(error.into())),
        };
        let records = records.into_iter().map(|(id, known)| {
            let mut record = Record::clone(&known.record);
            (record.expires_by, record.follows) = (Some(term), known.revision);
            let write = self.write(&id, &record, known.revision, Some(time_to_live));
            ((id, known), write)
        });
        let (mut left, mut error) = (Vec::new(), None);
        for ((id, known), outcome) in writes.each(records).await {
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

    /// The records as they are known without reading where that can be, for a first try; as they are, after
    /// a conflict.
    async fn known(
        &self,
        records: &[(TaskId, Arc<Record>)],
        tries: u32,
    ) -> Result<HashMap<TaskId, Known>, LedgerError> {
        let mut known = HashMap::with_capacity(records.len());
        let mut unknown = Vec::new();
        let creates_look = self.surprises.load(Ordering::Relaxed) > 300;
        for (id, record) in records {
            match self.cache.get(id) {
                Some(cached) if tries == 0 => {
                    known.insert(id.clone(), cached);
                }
                // Most creates are of new tasks, and then there is nothing to read.
                _ if tries == 0 && !creates_look && record.task.is_created() => {}
                _ => unknown.push(id.clone()),
            }
        }
        if !unknown.is_empty() {
            known.extend(self.read(&unknown).await?);
        }
        Ok(known)
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
        .map_err(|error| WriteError::Unknown(format!("a record cannot be written as JSON: {error}")))?;
    Ok(bytes)
}

fn decode(stored: &Stored) -> Result<Known, LedgerError> {
    let record = serde_json::from_slice(&stored.value).map_err(|error| LedgerError::Foreign {
        subject: stored.subject.clone(),
        reason: error.to_string(),
    })?;
    Ok(Known { record: Arc::new(record), revision: stored.revision })
}
