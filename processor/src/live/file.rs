//! A pipeline's resource in a file, for where there is no cluster. Reads it, and looks whether it has changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Live;
use crate::api::TaskPipeline;
use crate::config::Tuning;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why a file is no resource.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not there, or may not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no TaskPipeline.
    #[error("{path} is no TaskPipeline: {reason}")]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// What it says cannot work.
    #[error("{path}: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Every field at fault.
        reason: String,
    },
}

/// Reads a file; answers the resource, and what of it may change.
///
/// # Errors
/// Where it cannot be read, or what it says cannot work.
pub fn read(path: &Path) -> Result<(TaskPipeline, Tuning), FileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let pipeline: TaskPipeline = serde_saphyr::from_str(&text)
        .map_err(|error| FileError::Yaml { path: path.to_owned(), reason: error.to_string() })?;
    let invalid = |reason: String| FileError::Invalid { path: path.to_owned(), reason };
    pipeline.validate_cel().map_err(|errors| invalid(errors.to_string()))?;
    let tuning = Tuning::try_from(&pipeline.spec).map_err(|error| invalid(error.to_string()))?;
    Ok((pipeline, tuning))
}

/// The state of a file in which [`follow`] looks for changes.
#[derive(Clone, Copy, Debug)]
pub struct Seen(Option<SystemTime>);

/// How the file is before it is read: what changes later is a change to [`follow`], whether or not the read saw it.
#[must_use]
pub fn look(path: &Path) -> Seen {
    Seen(modified(path))
}

/// Takes over what changes in the file, for ever.
pub async fn follow(path: PathBuf, Seen(mut seen): Seen, live: Live) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = modified(&path);
        // One that is gone for a moment is being written anew.
        if now == seen || now.is_none() {
            continue;
        }
        seen = now;
        match read(&path) {
            Ok((_, tuning)) => live.accept(tuning),
            Err(error) => live.refuse(&error.to_string()),
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
