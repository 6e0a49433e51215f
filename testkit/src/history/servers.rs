//! The nats-servers of a history as processes: one, or three in a cluster.

use anyhow::{Context, bail};
use taskpipeline_simulator::Simulator;

use super::plan::Servers;
use crate::{NatsCluster, NatsServer, ProcessorOptions};

/// One or three that run.
#[derive(Debug)]
pub(crate) enum Running {
    /// One.
    One(Box<NatsServer>),
    /// Three.
    Three(NatsCluster),
}

impl Running {
    /// Starts them.
    ///
    /// # Errors
    /// Where one does not start.
    pub(crate) async fn start(servers: Servers) -> anyhow::Result<Self> {
        Ok(match servers {
            Servers::One => Self::One(Box::new(NatsServer::start().await?)),
            Servers::Three => Self::Three(NatsCluster::start().await?),
        })
    }

    /// Where they are, separated by commas.
    #[must_use]
    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            Self::Three(cluster) => cluster.url(),
        }
    }

    /// Replicas that work with them and write to this KV.
    ///
    /// # Errors
    /// Where the cluster has no server.
    pub(crate) fn options(&self, kv: &Simulator) -> anyhow::Result<ProcessorOptions> {
        let options = match self {
            Self::One(server) => ProcessorOptions::new(server, kv),
            Self::Three(cluster) => {
                let first = cluster.node(0).context("a cluster without servers")?;
                cluster.serves(ProcessorOptions::new(first, kv))
            }
        };
        // Some events are too large for the envelope of one dead letter.
        Ok(options.set("STREAM_MAX_EVENT_BYTES", "1048576"))
    }

    /// The only server.
    ///
    /// # Errors
    /// Where there are three: the fault is not for them.
    pub(crate) fn one(&mut self) -> anyhow::Result<&mut NatsServer> {
        match self {
            Self::One(server) => Ok(server),
            Self::Three(_) => bail!("three servers cannot have this fault"),
        }
    }

    /// The cluster.
    ///
    /// # Errors
    /// Where there is only one server.
    pub(crate) fn three(&mut self) -> anyhow::Result<&mut NatsCluster> {
        match self {
            Self::One(_) => bail!("one server cannot have this fault"),
            Self::Three(cluster) => Ok(cluster),
        }
    }

    /// The last lines of each.
    #[must_use]
    pub(crate) fn tails(&self) -> Vec<String> {
        match self {
            Self::One(server) => vec![server.tail()],
            Self::Three(cluster) => {
                (0..cluster.size()).filter_map(|n| cluster.node(n)).map(NatsServer::tail).collect()
            }
        }
    }
}
