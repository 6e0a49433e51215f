//! A cluster in a container, by kind, for machines with Docker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;
use crate::tools::Workshop;

/// The name of the tests' cluster, which is new for each run.
const TESTS: &str = "taskpipeline-e2e";

/// The name of the cluster that `cargo xtask cluster` keeps, so that the tests can run beside it.
const KEPT: &str = "taskpipeline";

pub(crate) struct Kind {
    name: &'static str,
    kubeconfig: PathBuf,
    /// Whether the cluster stays when this is dropped.
    kept: bool,
}

impl Kind {
    /// Starts a cluster for the tests.
    pub(super) fn start(shop: &Workshop) -> Result<Self> {
        let kubeconfig = shop.workspace.target.join("e2e-kubeconfig");
        let cluster = Self { name: TESTS, kubeconfig, kept: false };
        // A cluster that a former run has left behind would not be new.
        let _ = cluster.kind(&["delete", "cluster"]);
        cluster.create(shop)?;
        Ok(cluster)
    }

    /// Starts a cluster that stays.
    pub(super) fn keep(shop: &Workshop) -> Result<Self> {
        let mut cluster = Self { name: KEPT, kubeconfig: Self::kept_kubeconfig(shop)?, kept: false };
        cluster.create(shop)?;
        cluster.kept = true;
        Ok(cluster)
    }

    /// The cluster that stays; `None` if it is not up.
    pub(super) fn kept(shop: &Workshop) -> Result<Option<Self>> {
        if run::on_path("kind").is_none() {
            return Ok(None);
        }
        // Without a container engine, no cluster exists either.
        let names = run::output(Command::new("kind").args(["get", "clusters"])).unwrap_or_default();
        if !names.lines().any(|name| name == KEPT) {
            return Ok(None);
        }
        Ok(Some(Self { name: KEPT, kubeconfig: Self::kept_kubeconfig(shop)?, kept: true }))
    }

    /// Stops the cluster that stays.
    pub(super) fn delete(self) -> Result<()> {
        self.kind(&["delete", "cluster"])?;
        if self.kubeconfig.exists() {
            fs::remove_file(&self.kubeconfig)
                .with_context(|| format!("cannot remove {}", self.kubeconfig.display()))?;
        }
        Ok(())
    }

    fn kept_kubeconfig(shop: &Workshop) -> Result<PathBuf> {
        Ok(shop.cache_folder("cluster")?.join("kubeconfig"))
    }

    fn create(&self, shop: &Workshop) -> Result<()> {
        shop.progress.step("start a cluster by kind", || self.kind(&["create", "cluster", "--wait", "120s"]))
    }

    fn kind(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("kind");
        command.args(arguments).args(["--name", self.name]).arg("--kubeconfig").arg(&self.kubeconfig);
        run::output(&mut command).map(drop)
    }

    /// Returns a shell command that sends the signal named SIGNAL to the API server.
    pub(super) fn signal_api_server(&self) -> String {
        format!("docker exec {}-control-plane pkill -SIGNAL kube-apiserver", self.name)
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        let mut command = Command::new("kind");
        command.args(["load", "image-archive"]).arg(archive).args(["--name", self.name]);
        run::output(&mut command).map(drop)
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.kind(&["delete", "cluster"]);
        }
    }
}
