//! A pipeline's resource in a file, without a cluster. Reads the file, and checks it for changes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use taskpipeline_pipeline::live::Live;
use taskpipeline_pipeline::settings::PipelineSettings;

use crate::api::TaskPipeline;

/// The interval between two checks of the file.
const LOOK: Duration = Duration::from_secs(1);

/// Why a file cannot be used as a resource.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file does not exist, or may not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is not a TaskPipeline.
    #[error("{path} is not a TaskPipeline: {reason}")]
    Yaml {
        /// The path of the file.
        path: PathBuf,
        /// The fault and its place.
        reason: String,
    },
    /// The settings in the file are invalid.
    #[error("{path}: {reason}")]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// All invalid fields.
        reason: String,
    },
}

/// Reads the resource from a file, with its settings.
///
/// # Errors
/// If the file cannot be read, or its settings are invalid.
pub fn read(path: &Path) -> Result<(TaskPipeline, PipelineSettings), FileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let pipeline: TaskPipeline = serde_saphyr::from_str(&text)
        .map_err(|error| FileError::Yaml { path: path.to_owned(), reason: error.to_string() })?;
    let invalid = |reason: String| FileError::Invalid { path: path.to_owned(), reason };
    pipeline.validate_cel().map_err(|errors| invalid(errors.to_string()))?;
    let settings = PipelineSettings::try_from(&pipeline.spec).map_err(|error| invalid(error.to_string()))?;
    Ok((pipeline, settings))
}

/// The state of a file in which [`follow`] looks for changes.
#[derive(Clone, Copy, Debug)]
pub struct FileState(Option<SystemTime>);

/// The state of a file. Call this before [`read`], so that [`follow`] finds every later change, even one that the read saw.
#[must_use]
pub fn look(path: &Path) -> FileState {
    FileState(modified(path))
}

/// Applies changes of the file, indefinitely.
pub async fn follow(path: PathBuf, FileState(mut seen): FileState, live: Live) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = modified(&path);
        // A file that is missing for a moment is being rewritten.
        if now == seen || now.is_none() {
            continue;
        }
        seen = now;
        match read(&path) {
            Ok((_, settings)) => live.accept(settings.tuning),
            Err(error) => live.refuse(&error.to_string()),
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taskpipeline_pipeline::telemetry::metrics::Metrics;

    use super::*;

    #[tokio::test]
    async fn an_edit_between_the_first_read_of_a_file_and_its_watch_takes_effect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipeline.yaml");
        let write = |attempts: u32| {
            let spec = "nats: {url: \"nats://n:4222\"}, kv: {secretRef: {name: kv}}";
            let text = format!(
                "apiVersion: taskpipeline.dev/v1alpha1\nkind: TaskPipeline\nmetadata: {{name: tasks}}\n\
                 spec: {{{spec}, retry: {{maxAttempts: {attempts}}}}}\n"
            );
            std::fs::write(&path, text).unwrap();
        };
        write(3);
        let seen = look(&path);
        let (_, read) = read(&path).unwrap();
        let (live, mut settings) = Live::new(read.tuning, read.delivery, Arc::new(Metrics::new().unwrap()));
        // The clock of a file system may tick only every few milliseconds.
        tokio::time::sleep(Duration::from_millis(50)).await;
        write(7);
        let following = tokio::spawn(follow(path.clone(), seen, live));
        let changed = tokio::time::timeout(Duration::from_secs(10), settings.changed()).await;
        following.abort();
        changed.unwrap().unwrap();
        assert_eq!(settings.borrow().retry.max_attempts.get(), 7);
    }
}
