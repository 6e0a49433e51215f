//! The task, and the rules of its fields.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::{Quoted, check_length, check_no_control, checked_text};
use crate::{RuleError, Timestamp};

checked_text! {
    /// A task's id: 1 to 256 bytes of UTF-8 without control characters, and neither `.` nor `..`.
    ///
    /// So its KV key fits Cloudflare's 512 bytes, and a URL can name it. All other texts are allowed, with `/`,
    /// `%`, quotes and emoji.
    TaskId, check_id
}

checked_text! {
    /// A task's title: 1 to 200 characters (Unicode scalar values), none of them a control character.
    Title, check_title
}

checked_text! {
    /// A task's description: at most 2000 characters (Unicode scalar values); line breaks are allowed.
    Description, check_description
}

fn check_id(text: &str) -> Result<(), RuleError> {
    check_length(text.len(), 1, 256, "bytes")?;
    check_no_control(text)?;
    if text == "." || text == ".." {
        return Err(RuleError::new("must not be \".\" or \"..\", which no URL can name"));
    }
    Ok(())
}

fn check_title(text: &str) -> Result<(), RuleError> {
    check_length(text.chars().count(), 1, 200, "characters")?;
    check_no_control(text)
}

fn check_description(text: &str) -> Result<(), RuleError> {
    check_length(text.chars().count(), 0, 2000, "characters")
}

/// The status of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Work on the task has not started.
    Pending,
    /// Work on the task has started.
    InProgress,
    /// The task is done.
    Completed,
    /// The task was abandoned.
    Cancelled,
}

impl Status {
    /// All statuses, in the order of a task's life.
    pub const ALL: [Self; 4] = [Self::Pending, Self::InProgress, Self::Completed, Self::Cancelled];

    /// The name of the status in events, values and URLs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Status {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            RuleError::new(format!("must be one of {names}, got {}", Quoted(text)))
        })
    }
}

/// A task as KV stores it and the edge shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The id of the task in events and URLs.
    pub id: TaskId,
    /// One line of text.
    pub title: Title,
    /// A longer text; may be empty.
    pub description: Description,
    /// The status.
    pub status: Status,
    /// The time at which the processor took in the event that created the task.
    pub created_at: Timestamp,
    /// The time at which the processor took in the last event that changed the task.
    pub updated_at: Timestamp,
}
