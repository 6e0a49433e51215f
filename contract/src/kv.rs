//! How tasks lie in KV: the key, and the metadata beside the value that lets the list page show tasks
//! without reading their values.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Status, Task, TaskId, Timestamp, Title};

/// What every task's key begins with.
pub const KEY_PREFIX: &str = "tasks:";

/// Cloudflare's limit on one key's metadata, in bytes of JSON.
pub const MAX_METADATA_BYTES: usize = 1024;

/// The KV key of a task, `tasks:{id}`; at most 262 of the 512 bytes that Cloudflare allows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey(TaskId);

impl TaskKey {
    /// The key of this task.
    #[must_use]
    pub fn new(id: TaskId) -> Self {
        Self(id)
    }

    /// Reads a key that KV gave; nothing when it is no task's.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        TaskId::new(key.strip_prefix(KEY_PREFIX)?).ok().map(Self)
    }

    /// The task it is the key of.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.0
    }

    /// The task it is the key of.
    #[must_use]
    pub fn into_id(self) -> TaskId {
        self.0
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEY_PREFIX}{}", self.0)
    }
}

impl fmt::Debug for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for TaskKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the list page shows of a task, small enough to be its KV metadata: at most 800 bytes of title and
/// some 120 of the rest, below [`MAX_METADATA_BYTES`] whatever the task (a test holds it to that).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskMetadata {
    /// The task's title.
    pub title: Title,
    /// The task's status.
    pub status: Status,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl From<&Task> for TaskMetadata {
    fn from(task: &Task) -> Self {
        Self {
            title: task.title.clone(),
            status: task.status,
            created_at: task.created_at,
            updated_at: task.updated_at,
        }
    }
}
