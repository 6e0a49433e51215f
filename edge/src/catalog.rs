//! From KV's keys and values to tasks: walks the list, reads what the list does not hold, and notes what
//! is stored under a task's key but is no task.
//!
//! It may not know about HTTP, and it never reads values one by one.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use taskpipeline_contract::{KEY_PREFIX, Status, Task, TaskId, TaskKey, TaskMetadata};

use crate::query::ListQuery;
use crate::reader::{ListedKey, MAX_BULK_KEYS, MAX_LIST_KEYS, ReadError, TaskReader};

/// The most list calls one answer may cost. A filter that few tasks pass then gives a short page with a
/// cursor, instead of a request that walks the whole namespace.
const MAX_LIST_CALLS: usize = 20;

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
    pub(crate) cursor: Option<String>,
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
/// Each list call asks for no more keys than still fit, so that the cursor of the last one is exactly
/// where the next page begins. A key that passes the filter takes its place even when it cannot be shown.
pub(crate) async fn page<T: Listed>(
    reader: &impl TaskReader,
    query: &ListQuery,
) -> Result<Page<T>, ReadError> {
    let mut page = Page { tasks: Vec::new(), cursor: query.cursor.clone(), skipped: Vec::new() };
    let mut room = query.limit;
    for _ in 0..MAX_LIST_CALLS {
        let listed = reader.list(KEY_PREFIX, room.min(MAX_LIST_KEYS), page.cursor.as_deref()).await?;
        page.cursor = listed.cursor;
        let taken = show(reader, listed.keys, query.status, &mut page).await?;
        room = room.saturating_sub(taken);
        if room == 0 || page.cursor.is_none() {
            break;
        }
    }
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

/// A listed key on its way to the page.
enum Candidate<T> {
    /// The metadata was enough.
    Shown(T),
    /// The value must be read.
    Wanted { key: String, id: TaskId },
    /// Not a task's key.
    Foreign { key: String },
}

/// Adds what these keys hold to the page; answers how many places they take.
async fn show<T: Listed>(
    reader: &impl TaskReader,
    keys: Vec<ListedKey>,
    status: Option<Status>,
    page: &mut Page<T>,
) -> Result<usize, ReadError> {
    let candidates: Vec<Candidate<T>> = keys.into_iter().filter_map(|key| candidate(key, status)).collect();
    let mut values = values(reader, &candidates).await?;

    let mut taken = 0;
    for candidate in candidates {
        match candidate {
            Candidate::Shown(task) => page.tasks.push(task),
            Candidate::Foreign { key } => page.skipped.push(key),
            Candidate::Wanted { key, id } => match values.remove(&key).map(|text| read_task(&text, &id)) {
                // Deleted since it was listed.
                None => {}
                Some(None) => page.skipped.push(key),
                // The list lags behind the values, or had no metadata to filter by.
                Some(Some(task)) if !passes(task.status, status) => continue,
                Some(Some(task)) => page.tasks.push(T::from_task(task)),
            },
        }
        taken += 1;
    }
    Ok(taken)
}

/// Nothing when the metadata says that the filter does not let it pass.
fn candidate<T: Listed>(key: ListedKey, status: Option<Status>) -> Option<Candidate<T>> {
    let Some(id) = TaskKey::parse(&key.name).map(TaskKey::into_id) else {
        return Some(Candidate::Foreign { key: key.name });
    };
    let metadata: Option<TaskMetadata> = key.metadata.and_then(|text| serde_json::from_str(&text).ok());
    let shown = match &metadata {
        Some(metadata) if !passes(metadata.status, status) => return None,
        Some(metadata) => T::from_metadata(&id, metadata),
        None => None,
    };
    Some(shown.map_or(Candidate::Wanted { key: key.name, id }, Candidate::Shown))
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
        .filter_map(|candidate| match candidate {
            Candidate::Wanted { key, .. } => Some(key.clone()),
            _ => None,
        })
        .collect();
    let reads = wanted.chunks(MAX_BULK_KEYS).map(|keys| reader.get_bulk(keys));
    Ok(try_join_all(reads).await?.into_iter().flatten().collect())
}

/// Nothing when the text is not this task; a task under another task's key is not it either.
fn read_task(text: &str, id: &TaskId) -> Option<Task> {
    serde_json::from_str(text).ok().filter(|task: &Task| task.id == *id)
}
