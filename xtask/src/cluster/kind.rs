//! A cluster in a container, by kind. For machines with a container engine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::is_there;
use crate::run;
use crate::tools::Workshop;

const NAME: &str = "taskpipeline-e2e";

/// Whether kind is there, and an engine that answers.
pub(super) fn can_run() -> bool {
    is_there("kind") && run::output(Command::new("docker").arg("info")).is_ok()
}

pub(crate) struct Kind {
    kubeconfig: PathBuf,
}

impl Kind {
    pub(super) fn start(shop: &Workshop) -> Result<Self> {
        let kubeconfig = shop.workspace.target.join("e2e-kubeconfig");
        let cluster = Self { kubeconfig };
        // One that a former run has left behind would not be new.
        let _ = cluster.kind(&["delete", "cluster"]);
        shop.progress
            .step("start a cluster by kind", || cluster.kind(&["create", "cluster", "--wait", "120s"]))?;
        Ok(cluster)
    }

    fn kind(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("kind");
        command.args(arguments).args(["--name", NAME]).arg("--kubeconfig").arg(&self.kubeconfig);
        run::output(&mut command).map(drop)
    }

    /// A shell command that sends the API server the signal named SIGNAL.
    pub(super) fn signal_api_server(&self) -> String {
        format!("docker exec {NAME}-control-plane pkill -SIGNAL kube-apiserver")
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        let mut command = Command::new("kind");
        command.args(["load", "image-archive"]).arg(archive).args(["--name", NAME]);
        run::output(&mut command).map(drop)
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        let _ = self.kind(&["delete", "cluster"]);
    }
}
