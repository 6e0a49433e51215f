//! Finds the differences between KV and the ledger. It only reads.
//!
//! It reads the whole ledger and all keys of KV, compares them, and reads each difference again
//! before it counts.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use taskpipeline_contract::{TaskId, TaskKey};

use super::ResyncError;
use super::compare::{Class, Digest, Expected, KeyState, Table, compare};
use super::course::Course;
use super::reader::Reader;
use super::report::Report;
use crate::durable::bucket::Revision;
use crate::durable::ledger::feed::Feed;
use crate::durable::member::Member;
use taskpipeline_kv::{Entry, ListedKey, MAX_KEYS_PER_READ};

/// The most changes from the feed, and the most records of a read, at a time.
const AT_A_TIME: usize = 1_000;

/// How long the feed may be silent before the scan checks whether it has reached the end.
const SILENCE: Duration = Duration::from_secs(1);

/// Compares the whole ledger with all keys of KV. It only reads.
pub(super) struct Scan<'a> {
    pub(super) member: &'a Member,
    pub(super) course: &'a Course<'a>,
    pub(super) reader: &'a mut Reader,
    /// Whether to compare values, and not only the metadata in the list.
    pub(super) values: bool,
    /// How old answers of KV may be: differences are read again after this time.
    pub(super) recheck_after: Duration,
}

/// The differences that remain after another read.
#[derive(Default)]
struct Confirmed {
    differences: BTreeMap<TaskId, Class>,
    /// Tasks that differ because their changes are in flight.
    pending: BTreeMap<TaskId, Class>,
}

impl Scan<'_> {
    /// Compares everything.
    pub(super) async fn run(&mut self) -> Result<Report, ResyncError> {
        let mut table = self.read_ledger().await?;
        let mut report = Report { ledger_tasks: table.tasks(), ..Report::default() };
        let mut found = BTreeMap::new();
        let mut pages = 0;
        let mut cursor: Option<String> = None;
        self.course.progress.begin("reading the keys of KV", None);
        loop {
            let page = self.reader.page(cursor.as_deref()).await?;
            pages += 1;
            report.kv_keys += page.keys.len();
            let mut listed = Vec::with_capacity(page.keys.len());
            for key in page.keys {
                match see(&key) {
                    Some(seen) => listed.push(seen),
                    None => report.strangers.push(key.name),
                }
            }
            if self.values {
                self.add_values(&table, &mut listed).await?;
            }
            listed.into_iter().for_each(|(id, seen)| table.see(id, seen, &mut found));
            self.course.progress.at(report.kv_keys as u64, self.reader.requests());
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        table.finish(&mut found);
        // The way with fewer requests. A list has no values.
        let by_list = !self.values && found.len() / MAX_KEYS_PER_READ > pages;
        let confirmed = self.confirm(found, by_list).await?;
        self.course.progress.end();
        report.pending = confirmed.pending.len();
        for (id, class) in confirmed.differences {
            report.differences.entry(class).or_default().push(id);
        }
        Ok(report)
    }

    /// Reads the newest record of each task, up to the newest record at the start.
    async fn read_ledger(&self) -> Result<Table, ResyncError> {
        let mut table = Table::default();
        let up_to = self.course.newest_task().await?;
        if up_to == Revision::default() {
            return Ok(table);
        }
        let member = self.member;
        let mut feed = Feed::after(
            Revision::default(),
            member.jetstream.clone(),
            std::sync::Arc::clone(&member.names),
            member.connections.clone(),
            member.metrics.forged_answers.clone(),
        );
        self.course.progress.begin("reading the ledger", None);
        let (mut position, mut read) = (Revision::default(), 0_u64);
        let mut changes = Vec::with_capacity(AT_A_TIME);
        loop {
            let next = tokio::time::timeout(SILENCE, feed.next(&mut changes, AT_A_TIME)).await;
            // Records that are newer than at the start have changed since, and their tasks are read
            // again.
            if next.is_err() && position >= self.course.newest_task().await?.min(up_to) {
                return Ok(table);
            }
            let mut at_end = false;
            for change in changes.drain(..) {
                position = change.known.revision;
                at_end = change.behind == 0 || position >= up_to;
                table.learn(change.id, &change.known);
                read += 1;
            }
            self.course.progress.at(read, self.reader.requests());
            if at_end {
                return Ok(table);
            }
        }
    }

    /// Reads the values of the tasks that KV should have.
    async fn add_values(
        &mut self,
        table: &Table,
        listed: &mut [(TaskId, KeyState)],
    ) -> Result<(), ResyncError> {
        let mut wanted: Vec<_> = listed.iter_mut().filter(|(id, _)| table.should_hold(id)).collect();
        for some in wanted.chunks_mut(MAX_KEYS_PER_READ) {
            let keys: Vec<_> = some.iter().map(|(id, _)| TaskKey::new(id.clone())).collect();
            let mut entries = self.reader.entries(&keys).await?;
            for ((_, seen), key) in some.iter_mut().zip(keys) {
                match (entries.remove(&key.to_string()).flatten(), seen) {
                    (
                        Some(Entry::Whole { value, .. } | Entry::Value(value)),
                        KeyState::There { value: known, .. },
                    ) => {
                        *known = Some(Digest::of_value(&value));
                    }
                    // Listed and not found: the second read decides.
                    (None, seen) => *seen = KeyState::Absent,
                    (Some(_), KeyState::Absent) => {}
                }
            }
        }
        Ok(())
    }

    /// Reads differences again: at once, because tasks may just have changed, and after the time in
    /// which KV may return old values.
    async fn confirm(
        &mut self,
        found: BTreeMap<TaskId, Class>,
        by_list: bool,
    ) -> Result<Confirmed, ResyncError> {
        if found.is_empty() {
            return Ok(Confirmed::default());
        }
        let mut confirmed = self.look_again(found, by_list, false).await?;
        let left = confirmed.differences.len() + confirmed.pending.len();
        if left > 0 && !self.recheck_after.is_zero() {
            let Confirmed { differences, mut pending } = confirmed;
            let seconds = self.recheck_after.as_secs_f64();
            self.course.progress.print(&format!(
                "{left} keys differ; checking them again in {seconds:.0} s, because KV may return old values"
            ));
            tokio::time::sleep(self.recheck_after).await;
            pending.extend(differences);
            confirmed = self.look_again(pending, by_list, false).await?;
        }
        // A change in flight is not a difference, unless no replica writes it.
        if !confirmed.pending.is_empty() && !self.course.is_held().await? {
            let pending = std::mem::take(&mut confirmed.pending);
            let left = self.look_again(pending, by_list, true).await?;
            confirmed.differences.extend(left.differences);
            confirmed.pending = left.pending;
        }
        Ok(confirmed)
    }

    /// The differences that remain while the ledger has not changed.
    ///
    /// `forsaken`: no replica projects, so the watermark does not matter.
    async fn look_again(
        &mut self,
        found: BTreeMap<TaskId, Class>,
        by_list: bool,
        forsaken: bool,
    ) -> Result<Confirmed, ResyncError> {
        let mut confirmed = Confirmed::default();
        let found: Vec<_> = found.into_iter().collect();
        for some in found.chunks(if by_list { found.len().max(1) } else { MAX_KEYS_PER_READ }) {
            let ids: Vec<_> = some.iter().map(|(id, _)| id.clone()).collect();
            // The ledger is read before and after KV, because only unchanged records can be
            // compared.
            let settled_before = self.course.settled().await?;
            let before = self.expected(&ids).await?;
            let seen = if by_list { self.list().await? } else { self.read(&ids).await? };
            let after = self.expected(&ids).await?;
            let settled = settled_before.min(self.course.settled().await?);
            for (id, class) in some {
                let (now, then) = (after.get(id), before.get(id));
                let (revision, expected) = now.copied().unwrap_or((Revision::default(), Expected::Unheard));
                if then.map(|(revision, _)| *revision) != now.map(|(revision, _)| *revision) {
                    confirmed.pending.insert(id.clone(), *class);
                    continue;
                }
                let Some(class) = compare(expected, seen.get(id).copied().unwrap_or(KeyState::Absent)) else {
                    continue;
                };
                if revision <= settled || forsaken {
                    confirmed.differences.insert(id.clone(), class);
                } else {
                    confirmed.pending.insert(id.clone(), class);
                }
            }
        }
        Ok(confirmed)
    }

    async fn expected(&self, ids: &[TaskId]) -> Result<HashMap<TaskId, (Revision, Expected)>, ResyncError> {
        let mut expected = HashMap::with_capacity(ids.len());
        for some in ids.chunks(AT_A_TIME) {
            for (id, known) in self.member.ledger.read(some).await? {
                let of_it = Expected::by(&id, Some(&known.record));
                expected.insert(id, (known.revision, of_it));
            }
        }
        Ok(expected)
    }

    async fn list(&mut self) -> Result<HashMap<TaskId, KeyState>, ResyncError> {
        let mut seen = HashMap::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = self.reader.page(cursor.as_deref()).await?;
            seen.extend(page.keys.iter().filter_map(see));
            cursor = page.cursor;
            if cursor.is_none() {
                return Ok(seen);
            }
        }
    }

    async fn read(&mut self, ids: &[TaskId]) -> Result<HashMap<TaskId, KeyState>, ResyncError> {
        let keys: Vec<_> = ids.iter().cloned().map(TaskKey::new).collect();
        let mut entries = self.reader.entries(&keys).await?;
        let seen = |key: TaskKey| {
            let seen = match entries.remove(&key.to_string()).flatten() {
                None => KeyState::Absent,
                Some(Entry::Value(value)) => {
                    KeyState::There { metadata: None, value: Some(Digest::of_value(&value)) }
                }
                Some(Entry::Whole { value, metadata }) => KeyState::There {
                    metadata: Some(Digest::of_metadata(metadata.as_ref())),
                    value: Some(Digest::of_value(&value)),
                },
            };
            (key.into_id(), seen)
        };
        Ok(keys.into_iter().map(seen).collect())
    }
}

/// The task of a listed key and its metadata, or `None` if the key does not belong to a task.
fn see(key: &ListedKey) -> Option<(TaskId, KeyState)> {
    let id = TaskKey::parse(&key.name)?.into_id();
    Some((id, KeyState::There { metadata: Some(Digest::of_metadata(key.metadata.as_ref())), value: None }))
}
