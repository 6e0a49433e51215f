//! A Kubernetes cluster for the tests: one of kind's where there is a container engine, one on this very machine where there
//! is none, or one that is named. What differs between them stands here; the tests see a kubeconfig and nothing else.

mod context;
mod host;
mod kind;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run;
use crate::tools::Workshop;

/// Which cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// kind's where that can run, else this machine.
    Any,
    /// This machine: root, and Debian.
    Host,
    /// One that is there, by its context in the kubeconfig.
    Context(String),
}

/// A cluster that is up. Dropped, what was started for it is stopped.
pub(crate) enum Cluster {
    Host(host::Node),
    Kind(kind::Kind),
    Context(context::Named),
}

/// Gets what a cluster of this machine takes, without starting it.
///
/// # Errors
/// Where it cannot be got.
pub(crate) fn prepare(shop: &Workshop, wanted: &Wanted) -> Result<()> {
    let host = match wanted {
        Wanted::Host => true,
        Wanted::Any => !kind::can_run(),
        Wanted::Context(_) => false,
    };
    if host { host::Node::programs(shop).map(drop) } else { Ok(()) }
}

impl Cluster {
    /// Starts it, or finds it.
    ///
    /// # Errors
    /// Where there is no way to have one.
    pub(crate) fn up(shop: &Workshop, wanted: &Wanted) -> Result<Self> {
        match wanted {
            Wanted::Context(name) => Ok(Self::Context(context::Named::find(shop, name)?)),
            Wanted::Host => Ok(Self::Host(host::Node::start(shop)?)),
            Wanted::Any if kind::can_run() => Ok(Self::Kind(kind::Kind::start(shop)?)),
            Wanted::Any if host::can_run() => Ok(Self::Host(host::Node::start(shop)?)),
            Wanted::Any => bail!(
                "no cluster to test on: start a container engine with kind on PATH, or name a cluster by --context (the \
                 tests make namespaces of their own there), or use --host as root on Debian"
            ),
        }
    }

    /// Its kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Host(node) => node.kubeconfig(),
            Self::Kind(kind) => kind.kubeconfig(),
            Self::Context(named) => named.kubeconfig(),
        }
    }

    /// How a test stops the API server and lets it go on, as shell commands in environment variables.
    ///
    /// # Errors
    /// Where it is not running.
    pub(crate) fn api_server(&self) -> Result<Vec<(&'static str, String)>> {
        let signal = match self {
            Self::Host(node) => {
                let id = node.api_server().context("the API server is not running")?;
                format!("kill -SIGNAL {id}")
            }
            Self::Kind(kind) => kind.signal_api_server(),
            // Not ours to stop.
            Self::Context(_) => return Ok(Vec::new()),
        };
        Ok([("TASKPIPELINE_E2E_STOP_API_SERVER", "STOP"), ("TASKPIPELINE_E2E_CONTINUE_API_SERVER", "CONT")]
            .map(|(variable, name)| (variable, signal.replace("SIGNAL", name)))
            .to_vec())
    }

    /// Brings an image to the nodes.
    ///
    /// # Errors
    /// Where it cannot be brought there.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        match self {
            Self::Host(node) => node.load(archive),
            Self::Kind(kind) => kind.load(archive),
            Self::Context(named) => {
                let name = named.name();
                bail!(
                    "an image cannot be brought to the cluster {name}: name one that it can pull, by --images"
                )
            }
        }
    }
}

/// Whether a program is on PATH.
fn is_there(program: &str) -> bool {
    run::on_path(program).is_some()
}
