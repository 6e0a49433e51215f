//! A cluster of the user's own, by its context. Never changed but by the tests, in namespaces of their own.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;
use crate::tools::Workshop;

/// A cluster of the user's own, named by its kubeconfig context.
pub(crate) struct Named {
    name: String,
    /// With this context alone, as the current one.
    kubeconfig: PathBuf,
}

impl Named {
    pub(super) fn find(shop: &Workshop, name: &str) -> Result<Self> {
        let only = ["config", "view", "--raw", "--minify", "--flatten", "--context", name];
        let text = run::output(Command::new("kubectl").args(only))?;
        let kubeconfig = shop.workspace.target.join("e2e-kubeconfig");
        let _ = fs::remove_file(&kubeconfig);
        // It holds credentials: for nobody else to read.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&kubeconfig)
            .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
        file.write_all(text.as_bytes())?;
        Ok(Self { name: name.to_owned(), kubeconfig })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.kubeconfig);
    }
}
