//! A Kubernetes cluster: one of kind's, a node directly on this machine (host mode), or one that is named. The tests get a new
//! one; `cargo xtask cluster` keeps one for trying things by hand. What differs between the kinds of cluster stands here.

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

/// Which cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One that leaves this machine as it is: kind's.
    Harmless,
    /// A node directly on this machine: root, and Debian.
    Host,
    /// One that exists, by its context in the kubeconfig.
    Context(String),
}

/// A cluster that is up. Dropped, it is stopped, unless it is kept or was there before.
pub(crate) enum Cluster {
    Host(host::Node),
    Kind(kind::Kind),
    Context(context::Named),
}

/// Chooses the cluster of a command, before anything begins.
///
/// # Errors
/// Where there is no way to have one, or a kept cluster is in the way.
pub(crate) fn choose(wanted: &Wanted, caller: Caller) -> Result<Choice> {
    let choice = choice::choose(wanted, &Machine::look(), caller)?;
    if choice == Choice::Host && caller == Caller::Tests {
        host::is_not_kept()?;
    }
    Ok(choice)
}

/// Gets what a cluster takes, without starting it.
///
/// # Errors
/// Where it cannot be got.
pub(crate) fn prepare(shop: &Workshop, choice: &Choice) -> Result<()> {
    match choice {
        Choice::Host => host::Node::programs(shop).map(drop),
        Choice::Kind | Choice::Context(_) => Ok(()),
    }
}

impl Cluster {
    /// Starts a cluster for the tests, or finds it.
    ///
    /// # Errors
    /// Where it does not start, or is not there.
    pub(crate) fn up(shop: &Workshop, choice: &Choice) -> Result<Self> {
        Ok(match choice {
            Choice::Context(name) => Self::Context(context::Named::find(shop, name)?),
            Choice::Host => Self::Host(host::Node::start(shop)?),
            Choice::Kind => Self::Kind(kind::Kind::start(shop)?),
        })
    }

    /// Its kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Host(_) => host::kubeconfig(),
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
            Self::Host(_) => host::load(archive),
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
