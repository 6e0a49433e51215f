//! Tasks in KV: the key, and the metadata, with which the list page shows tasks without reading their values.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Status, Task, TaskId, Timestamp, Title};

/// The prefix of every task's key.
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

    /// Parses a key of KV; `None` if it is not the key of a task.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        TaskId::new(key.strip_prefix(KEY_PREFIX)?).ok().map(Self)
    }

    /// The id of the task.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.0
    }

    /// The id of the task, without a copy.
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

/// The KV metadata of a task: the fields that the list page shows.
///
/// Its JSON is always within [`MAX_METADATA_BYTES`]: at most 800 bytes of title, and about 120 bytes of other
/// fields. A test checks this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskMetadata {
    /// The task's title.
    pub title: Title,
    /// The task's status.
    pub status: Status,
    /// The time at which the task was created.
    pub created_at: Timestamp,
    /// The time of the task's last change.
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
