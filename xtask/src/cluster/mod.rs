//! A Kubernetes cluster: by kind, as a node directly on this machine (host mode), or an existing one by its context.
//!
//! The tests get a new cluster; `cargo xtask cluster` keeps one for manual work. This module hides the differences
//! between the kinds of cluster.

mod choice;
mod context;
mod host;
mod keep;
mod kind;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tools::Workshop;
use choice::Machine;
pub(crate) use choice::{Caller, Choice};
pub(crate) use keep::{Options, run};

/// The cluster that the options request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A cluster that leaves this machine as it is: kind's.
    Harmless,
    /// A node directly on this machine; requires root and Debian.
    Host,
    /// An existing cluster, by its context in the kubeconfig.
    Context(String),
}

/// A cluster that is up. When it is dropped it stops, unless it is kept or existed before.
pub(crate) enum Cluster {
    Host(host::Node),
    Kind(kind::Kind),
    Context(context::Named),
}

/// Chooses the cluster of a command, before anything starts.
///
/// # Errors
/// If no cluster is possible here, or a kept cluster is in the way.
pub(crate) fn choose(wanted: &Wanted, caller: Caller) -> Result<Choice> {
    let choice = choice::choose(wanted, &Machine::look(), caller)?;
    if choice == Choice::Host && caller == Caller::Tests {
        host::is_not_kept()?;
    }
    Ok(choice)
}

/// Gets the programs of a cluster, without starting it.
///
/// # Errors
/// If a program cannot be obtained.
pub(crate) fn prepare(shop: &Workshop, choice: &Choice) -> Result<()> {
    match choice {
        Choice::Host => host::Node::programs(shop).map(drop),
        Choice::Kind | Choice::Context(_) => Ok(()),
    }
}

impl Cluster {
    /// Starts a cluster for the tests, or finds the existing one.
    ///
    /// # Errors
    /// If the cluster does not start, or does not exist.
    pub(crate) fn up(shop: &Workshop, choice: &Choice) -> Result<Self> {
        Ok(match choice {
            Choice::Context(name) => Self::Context(context::Named::find(shop, name)?),
            Choice::Host => Self::Host(host::Node::start(shop)?),
            Choice::Kind => Self::Kind(kind::Kind::start(shop)?),
        })
    }

    /// The path of the cluster's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Host(_) => host::kubeconfig(),
            Self::Kind(kind) => kind.kubeconfig(),
            Self::Context(named) => named.kubeconfig(),
        }
    }

    /// Returns environment variables with shell commands, by which a test stops and continues the API server.
    ///
    /// # Errors
    /// If the API server is not running.
    pub(crate) fn api_server(&self) -> Result<Vec<(&'static str, String)>> {
        let signal = match self {
            Self::Host(node) => {
                let id = node.api_server().context("the API server is not running")?;
                format!("kill -SIGNAL {id}")
            }
            Self::Kind(kind) => kind.signal_api_server(),
            // The API server of a user's cluster is not ours to stop.
            Self::Context(_) => return Ok(Vec::new()),
        };
        Ok([("TASKPIPELINE_E2E_STOP_API_SERVER", "STOP"), ("TASKPIPELINE_E2E_CONTINUE_API_SERVER", "CONT")]
            .map(|(variable, name)| (variable, signal.replace("SIGNAL", name)))
            .to_vec())
    }

    /// Loads an image into the nodes.
    ///
    /// # Errors
    /// If the image cannot be loaded.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        match self {
            Self::Host(_) => host::load(archive),
            Self::Kind(kind) => kind.load(archive),
            Self::Context(named) => {
                let name = named.name();
                bail!(
                    "cannot load an image into the cluster {name}: give --images with a prefix that the cluster can pull"
                )
            }
        }
    }
}
