//! The nats-servers of a history as processes: one, or three in a cluster.

use anyhow::{Context, bail};
use taskpipeline_simulator::Simulator;

use super::moment::Servers;
use crate::bundled::{PRODUCER, logged_in};
use crate::nats::Login;
use crate::{BundledNats, NatsCluster, NatsServer, ProcessorOptions};

/// One or three running servers.
#[derive(Debug)]
pub(crate) struct Running {
    number: Number,
    accounts: bool,
}

#[derive(Debug)]
enum Number {
    One(Box<NatsServer>),
    Three(NatsCluster),
}

impl Running {
    /// Starts the servers. With `accounts`, they have the chart's configuration, in which each producer has an
    /// account; otherwise every client may do everything.
    ///
    /// # Errors
    /// If a server does not start.
    pub(crate) async fn start(servers: Servers, accounts: bool) -> anyhow::Result<Self> {
        let number = match (servers, accounts) {
            (Servers::One, false) => Number::One(Box::new(NatsServer::start().await?)),
            (Servers::One, true) => Number::One(Box::new(BundledNats::overseen().await?)),
            (Servers::Three, false) => Number::Three(NatsCluster::start().await?),
            (Servers::Three, true) => Number::Three(BundledNats::overseen_three().await?),
        };
        Ok(Self { number, accounts })
    }

    /// The addresses of the servers, separated by commas.
    #[must_use]
    pub(crate) fn url(&self) -> String {
        match &self.number {
            Number::One(server) => server.url(),
            Number::Three(cluster) => cluster.url(),
        }
    }

    /// The login of a producer.
    #[must_use]
    pub(crate) fn producer(&self) -> Option<Login> {
        self.accounts.then_some(PRODUCER)
    }

    /// The login of the harness.
    #[must_use]
    pub(crate) fn harness(&self) -> Option<Login> {
        self.nodes().first().and_then(|node| node.login())
    }

    /// All servers.
    #[must_use]
    pub(crate) fn nodes(&self) -> Vec<&NatsServer> {
        match &self.number {
            Number::One(server) => vec![server],
            Number::Three(cluster) => (0..cluster.size()).filter_map(|n| cluster.node(n)).collect(),
        }
    }

    /// The cluster, if there is one.
    #[must_use]
    pub(crate) fn cluster(&self) -> Option<&NatsCluster> {
        match &self.number {
            Number::One(_) => None,
            Number::Three(cluster) => Some(cluster),
        }
    }

    /// Returns the options of replicas that use these servers and write to this KV.
    ///
    /// # Errors
    /// If the cluster has no server.
    pub(crate) fn options(&self, kv: &Simulator) -> anyhow::Result<ProcessorOptions> {
        let options = match &self.number {
            Number::One(server) => ProcessorOptions::new(server, kv),
            Number::Three(cluster) => {
                let first = cluster.node(0).context("a cluster without servers")?;
                cluster.serves(ProcessorOptions::new(first, kv))
            }
        };
        let options = if self.accounts { logged_in(options) } else { options };
        // Some events are too large for the envelope of one dead letter.
        Ok(options.set("STREAM_MAX_EVENT_BYTES", "1048576"))
    }

    /// Returns the only server.
    ///
    /// # Errors
    /// If there are three servers: the fault does not apply to them.
    pub(crate) fn one(&mut self) -> anyhow::Result<&mut NatsServer> {
        match &mut self.number {
            Number::One(server) => Ok(server),
            Number::Three(_) => bail!("three servers cannot have this fault"),
        }
    }

    /// Returns the cluster.
    ///
    /// # Errors
    /// If there is only one server.
    pub(crate) fn three(&mut self) -> anyhow::Result<&mut NatsCluster> {
        match &mut self.number {
            Number::One(_) => bail!("one server cannot have this fault"),
            Number::Three(cluster) => Ok(cluster),
        }
    }

    /// The last lines of each server.
    #[must_use]
    pub(crate) fn tails(&self) -> Vec<String> {
        self.nodes().into_iter().map(NatsServer::tail).collect()
    }
}
