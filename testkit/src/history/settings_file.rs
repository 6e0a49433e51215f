//! The file with the settings of running replicas.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::edit::Settings;
use super::moment::Servers;
use super::plan::Plan;

/// The file that the replicas follow.
#[derive(Debug)]
pub(crate) struct SettingsFile {
    folder: TempDir,
    pub(crate) settings: Mutex<Settings>,
    nats: String,
    servers: Servers,
    little_room: bool,
    settle_after: Duration,
}

impl SettingsFile {
    /// Creates the file with the initial settings of the replicas.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn new(plan: &Plan, nats: String) -> anyhow::Result<Self> {
        let (folder, settings) = (TempDir::new()?, Settings::default());
        let (servers, little_room, settle_after) = (plan.servers, plan.little_room, plan.settle_after);
        let text = settings.file(&nats, servers, little_room, settle_after);
        let file = Self { folder, settings: Mutex::new(settings), nats, servers, little_room, settle_after };
        file.write(&text)?;
        Ok(file)
    }

    /// The path of the file.
    #[must_use]
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("pipeline.yaml")
    }

    /// Returns the file's text with these settings.
    pub(crate) fn text(&self, settings: &Settings) -> String {
        settings.file(&self.nats, self.servers, self.little_room, self.settle_after)
    }

    /// Replaces the file atomically, as editors and kubelets do.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, text: &str) -> anyhow::Result<()> {
        let (path, new) = (self.path(), self.folder.path().join("new"));
        let write = |path: &Path| std::fs::write(path, text);
        write(&new).and_then(|()| std::fs::rename(&new, &path)).context("cannot write the replicas' settings")
    }
}
