//! From KV's keys and values to tasks: walks the list, reads what the list does not hold, and notes what
//! is stored under a task's key but is no task.
//!
//! It may not know about HTTP, and it never reads values one by one.

use std::collections::{HashMap, VecDeque};

use futures_util::future::try_join_all;
use taskpipeline_contract::{KEY_PREFIX, Status, Task, TaskId, TaskKey, TaskMetadata};

use crate::cursor::Cursor;
use crate::query::ListQuery;
use crate::reader::{ListedKey, MAX_BULK_KEYS, MAX_LIST_KEYS, ReadError, TaskReader};

/// The most list calls one answer may cost; a free account has 1,000 a day. A filter that few tasks pass then gives a
/// short page with a cursor, instead of a request that walks the whole namespace.
const MAX_LIST_CALLS: usize = 5;

/// How many keys a list call asks for where they may be enough, and [`MAX_LIST_KEYS`] elsewhere: a call costs the same however
/// many it gives, and there are two sizes only, so that like requests share their list calls.
const FEW_LIST_KEYS: usize = 100;

/// The fewest values that are read together where a list call does not say enough.
const MIN_READ: usize = 10;

/// What the list page shows of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) id: TaskId,
    pub(crate) metadata: TaskMetadata,
}

/// Some of the tasks, in the order of their keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<T> {
    pub(crate) tasks: Vec<T>,
    /// Where the next page begins. It may be there although this page is short.
    pub(crate) cursor: Option<Cursor>,
    /// The keys that hold something other than a task.
    pub(crate) skipped: Vec<String>,
}

/// What is stored for a task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Task(Box<Task>),
    Nothing,
    /// A value that is not this task.
    Unreadable,
}

/// How much of a task is wanted, and so whether its metadata is enough.
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

/// One page of tasks.
///
/// A key that passes the filter takes its place even when it cannot be shown.
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

/// What is stored for this task.
pub(crate) async fn task(reader: &impl TaskReader, id: &TaskId) -> Result<Stored, ReadError> {
    let value = reader.get(&TaskKey::new(id.clone()).to_string()).await?;
    Ok(match value {
        None => Stored::Nothing,
        Some(text) => read_task(&text, id).map_or(Stored::Unreadable, |task| Stored::Task(Box::new(task))),
    })
}

/// What became of some candidates.
struct Shown {
    /// How many places they took.
    taken: usize,
    /// The key of the last one that there was room for.
    last: String,
    /// Whether there was no room for others.
    is_cut: bool,
}

/// A listed key on its way to the page.
struct Candidate<T> {
    key: String,
    kind: Kind<T>,
}

/// What is to be done with it.
enum Kind<T> {
    /// The metadata was enough.
    Shown(T),
    /// The value must be read.
    Wanted(TaskId),
    /// Not a task's key.
    Foreign,
}

/// Adds what these keys hold to the page, as long as there is room.
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
                // Deleted since it was listed.
                None => {}
                Some(None) => page.skipped.push(key),
                // The list lags behind the values, or had no metadata to filter by.
                Some(Some(task)) if !passes(task.status, status) => continue,
                Some(Some(task)) => page.tasks.push(T::from_task(task)),
            },
        }
        shown.taken += 1;
    }
    Ok(shown)
}

/// Nothing when the metadata says that the filter does not let it pass.
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

/// Nothing when the text is not this task; a task under another task's key is not it either.
fn read_task(text: &str, id: &TaskId) -> Option<Task> {
    serde_json::from_str(text).ok().filter(|task: &Task| task.id == *id)
}
