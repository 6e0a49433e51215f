//! A cluster of the user, by its kubeconfig context. Only the tests change it, in their own namespaces.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;
use crate::tools::Workshop;

/// A cluster of the user, named by its kubeconfig context.
pub(crate) struct Named {
    name: String,
    /// A kubeconfig with only this context, as the current one.
    kubeconfig: PathBuf,
}

impl Named {
    pub(super) fn find(shop: &Workshop, name: &str) -> Result<Self> {
        let only = ["config", "view", "--raw", "--minify", "--flatten", "--context", name];
        let text = run::output(Command::new("kubectl").args(only))?;
        let kubeconfig = shop.workspace.target.join("e2e-kubeconfig");
        let _ = fs::remove_file(&kubeconfig);
        // The file contains credentials: no other user may read it.
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
