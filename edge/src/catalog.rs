//! Reads tasks from KV: lists keys, reads the values that the list call does not return, and notes keys whose
//! values are not tasks.
//!
//! For a list it reads values in bulk, never one by one. It does not depend on HTTP.

use std::collections::{HashMap, VecDeque};

use futures_util::future::try_join_all;
use taskpipeline_contract::{KEY_PREFIX, Status, Task, TaskId, TaskKey, TaskMetadata};

use crate::cursor::Cursor;
use crate::query::ListQuery;
use crate::reader::{ListedKey, MAX_BULK_KEYS, MAX_LIST_KEYS, ReadError, TaskReader};

/// The most list calls for one answer; a free account has 1,000 a day.
///
/// If few tasks pass the filter, the answer is a short page with a cursor. It never scans the whole namespace.
const MAX_LIST_CALLS: usize = 5;

/// The keys of a list call for a small page; a larger page requests [`MAX_LIST_KEYS`].
///
/// Every list call costs the same. There are only two sizes, so that similar requests share list calls.
const FEW_LIST_KEYS: usize = 100;

/// The fewest keys that are processed together, and so the fewest values of one bulk read.
const MIN_READ: usize = 10;

/// The part of a task that the list page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) id: TaskId,
    pub(crate) metadata: TaskMetadata,
}

/// One page of tasks, in the order of their keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<T> {
    pub(crate) tasks: Vec<T>,
    /// The start of the next page. A short page may have one too.
    pub(crate) cursor: Option<Cursor>,
    /// The keys whose values are not tasks.
    pub(crate) skipped: Vec<String>,
}

/// The value under the key of a task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Task(Box<Task>),
    Nothing,
    /// A value that is not this task.
    Unreadable,
}

/// The form of a task on a page: a [`Summary`] needs only the metadata, a [`Task`] needs the value.
pub(crate) trait Listed: Sized + Send {
    fn from_metadata(id: &TaskId, metadata: &TaskMetadata) -> Option<Self>;
    fn from_task(task: Task) -> Self;
}

impl Listed for Summary {
    fn from_metadata(id: &TaskId, metadata: &TaskMetadata) -> Option<Self> {
        Some(Self { id: id.clone(), metadata: metadata.clone() })
    }

    fn from_task(task: Task) -> Self {
        Self { metadata: TaskMetadata::from(&task), id: task.id }
    }
}

impl Listed for Task {
    fn from_metadata(_: &TaskId, _: &TaskMetadata) -> Option<Self> {
        None
    }

    fn from_task(task: Task) -> Self {
        task
    }
}

/// Reads one page of tasks.
///
/// A key that passes the filter counts towards the limit, even if its value is missing or not a task.
pub(crate) async fn page<T: Listed>(
    reader: &impl TaskReader,
    query: &ListQuery,
) -> Result<Page<T>, ReadError> {
    let mut page = Page { tasks: Vec::new(), cursor: None, skipped: Vec::new() };
    let mut room = query.limit;
    let mut from = query.cursor.clone().unwrap_or_default();
    for _ in 0..MAX_LIST_CALLS {
        let most = if room <= FEW_LIST_KEYS { FEW_LIST_KEYS } else { MAX_LIST_KEYS };
        let listed = reader.list(KEY_PREFIX, most, from.page.as_deref()).await?;
        let keys = listed.keys.into_iter().filter(|key| !from.is_past(&key.name));
        let mut waiting: VecDeque<_> = keys.filter_map(|key| candidate(key, query.status)).collect();
        while room > 0 && !waiting.is_empty() {
            let some = waiting.drain(..waiting.len().min(room.max(MIN_READ))).collect();
            let shown = show(reader, some, query.status, room, &mut page).await?;
            room -= shown.taken;
            from.after = Some(shown.last);
            if shown.is_cut {
                page.cursor = Some(from);
                return Ok(page);
            }
        }
        if !waiting.is_empty() {
            page.cursor = Some(from);
            return Ok(page);
        }
        let Some(next) = listed.cursor else { return Ok(page) };
        from = Cursor { page: Some(next), after: None };
        if room == 0 {
            break;
        }
    }
    page.cursor = Some(from);
    Ok(page)
}

/// Reads one task.
pub(crate) async fn task(reader: &impl TaskReader, id: &TaskId) -> Result<Stored, ReadError> {
    let value = reader.get(&TaskKey::new(id.clone()).to_string()).await?;
    Ok(match value {
        None => Stored::Nothing,
        Some(text) => read_task(&text, id).map_or(Stored::Unreadable, |task| Stored::Task(Box::new(task))),
    })
}

/// The result of [`show`].
struct Shown {
    /// The number of places on the page that the candidates took.
    taken: usize,
    /// The key of the last candidate that had room.
    last: String,
    /// Whether candidates are left for the next page.
    is_cut: bool,
}

/// A listed key that passes the filter, as far as its metadata shows.
struct Candidate<T> {
    key: String,
    kind: Kind<T>,
}

/// The next step for a candidate.
enum Kind<T> {
    /// Show the task: the metadata is enough.
    Shown(T),
    /// Read the value.
    Wanted(TaskId),
    /// Skip the key: it is not the key of a task.
    Foreign,
}

/// Adds candidates to the page until `room` places are taken.
async fn show<T: Listed>(
    reader: &impl TaskReader,
    candidates: Vec<Candidate<T>>,
    status: Option<Status>,
    room: usize,
    page: &mut Page<T>,
) -> Result<Shown, ReadError> {
    let mut values = values(reader, &candidates).await?;
    let mut shown = Shown { taken: 0, last: String::new(), is_cut: false };
    for Candidate { key, kind } in candidates {
        if shown.taken == room {
            shown.is_cut = true;
            break;
        }
        shown.last.clone_from(&key);
        match kind {
            Kind::Shown(task) => page.tasks.push(task),
            Kind::Foreign => page.skipped.push(key),
            Kind::Wanted(id) => match values.remove(&key).map(|text| read_task(&text, &id)) {
                // Deleted after the list call.
                None => {}
                Some(None) => page.skipped.push(key),
                // The list is older than the value, or the key has no metadata to filter by.
                Some(Some(task)) if !passes(task.status, status) => continue,
                Some(Some(task)) => page.tasks.push(T::from_task(task)),
            },
        }
        shown.taken += 1;
    }
    Ok(shown)
}

/// Makes a candidate from a listed key; `None` if the metadata does not pass the filter.
fn candidate<T: Listed>(listed: ListedKey, status: Option<Status>) -> Option<Candidate<T>> {
    let ListedKey { name: key, metadata } = listed;
    let Some(id) = TaskKey::parse(&key).map(TaskKey::into_id) else {
        return Some(Candidate { key, kind: Kind::Foreign });
    };
    let metadata: Option<TaskMetadata> = metadata.and_then(|text| serde_json::from_str(&text).ok());
    let shown = match &metadata {
        Some(metadata) if !passes(metadata.status, status) => return None,
        Some(metadata) => T::from_metadata(&id, metadata),
        None => None,
    };
    Some(Candidate { key, kind: shown.map_or(Kind::Wanted(id), Kind::Shown) })
}

fn passes(status: Status, filter: Option<Status>) -> bool {
    filter.is_none_or(|wanted| wanted == status)
}

async fn values<T: Listed>(
    reader: &impl TaskReader,
    candidates: &[Candidate<T>],
) -> Result<HashMap<String, String>, ReadError> {
    let wanted: Vec<String> = candidates
        .iter()
        .filter(|candidate| matches!(candidate.kind, Kind::Wanted(_)))
        .map(|candidate| candidate.key.clone())
        .collect();
    let reads = wanted.chunks(MAX_BULK_KEYS).map(|keys| reader.get_bulk(keys));
    Ok(try_join_all(reads).await?.into_iter().flatten().collect())
}

/// Parses the task with this id; `None` for any other text, the task of another id included.
fn read_task(text: &str, id: &TaskId) -> Option<Task> {
    serde_json::from_str(text).ok().filter(|task: &Task| task.id == *id)
}
