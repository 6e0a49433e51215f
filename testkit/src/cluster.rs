//! Three nats-servers that form one cluster, each a separate process.

use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use futures_util::TryStreamExt;
use serde_json::Value;

use crate::nats::{Routes, client_options};
use crate::{NatsServer, ProcessorOptions, eventually, free_ports, http};

/// The number of servers: the smallest number that outlives the loss of one.
const NODES: usize = 3;

/// The time limit for an election, or for a server to start and catch up, on a busy machine.
const ELECTION: Duration = Duration::from_secs(45);

/// A cluster of three nats-servers with JetStream, on free ports of 127.0.0.1.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts the three servers, and waits until JetStream's meta group has a leader and all of its peers.
    ///
    /// # Errors
    /// If a server does not start, or the servers do not find each other.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts the three servers with further arguments, the same for each.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(extra: &[&str]) -> anyhow::Result<Self> {
        let ports = free_ports::<NODES>()?;
        let all: Vec<_> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let mut nodes = Vec::with_capacity(NODES);
        for (n, port) in ports.into_iter().enumerate() {
            let routes = Routes { name: format!("n{n}"), port, all: all.join(",") };
            nodes.push(NatsServer::start_in(routes, extra).await?);
        }
        Self::of(nodes).await
    }

    /// Forms the cluster from servers that were started for it.
    pub(crate) async fn of(nodes: Vec<NatsServer>) -> anyhow::Result<Self> {
        meta_leader(&nodes).await?;
        Ok(Self { nodes })
    }

    /// The number of servers.
    #[must_use]
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// The addresses of all servers, as `NATS_URL` takes them.
    #[must_use]
    pub fn url(&self) -> String {
        self.nodes.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// Returns one of the servers.
    #[must_use]
    pub fn node(&self, n: usize) -> Option<&NatsServer> {
        self.nodes.get(n)
    }

    /// Connects a client that knows all servers.
    ///
    /// # Errors
    /// If no server accepts the client.
    pub async fn client(&self) -> anyhow::Result<async_nats::Client> {
        let servers: Vec<_> = self.nodes.iter().map(NatsServer::url).collect();
        let options = client_options(self.nodes.first().and_then(NatsServer::login));
        options.connect(servers).await.context("cannot connect to the test's cluster of nats-servers")
    }

    /// Points a replica at all servers, with streams that all of them replicate.
    #[must_use]
    pub fn serves(&self, options: ProcessorOptions) -> ProcessorOptions {
        options.set("NATS_URL", &self.url()).set("STREAM_REPLICAS", &NODES.to_string())
    }

    /// Kills a server as a crash would, and waits until its process has ended.
    ///
    /// # Errors
    /// If no server has this number, or the process does not end.
    pub async fn kill(&mut self, n: usize) -> anyhow::Result<()> {
        self.nodes.get_mut(n).context("no such server")?.kill().await
    }

    /// Starts a killed server again with its data, and waits until the cluster is complete: a meta leader, a leader
    /// of each stream, and no replica behind.
    ///
    /// # Errors
    /// If the server does not start, or the cluster does not become complete.
    pub async fn restart(&mut self, n: usize) -> anyhow::Result<()> {
        self.nodes.get_mut(n).context("no such server")?.restart().await?;
        self.whole().await
    }

    /// Waits until all servers are up, and each stream and consumer has a leader and followers that have caught up.
    ///
    /// # Errors
    /// Names the part that is still missing.
    pub async fn whole(&self) -> anyhow::Result<()> {
        meta_leader(&self.nodes).await?;
        let client = self.client().await?;
        eventually(ELECTION, async || {
            let jetstream = jetstream::new(client.clone());
            let streams: Vec<_> = jetstream.streams().try_collect().await?;
            for info in streams {
                let name = &info.config.name;
                let cluster = info.cluster.with_context(|| format!("{name} is not clustered"))?;
                ensure!(cluster.leader.is_some(), "{name} has no leader");
                let behind = cluster.replicas.iter().find(|peer| !peer.current || peer.offline);
                ensure!(behind.is_none(), "{name}: {behind:?} has not caught up");
            }
            Ok(())
        })
        .await
    }

    /// Returns the number of the server that leads a stream.
    ///
    /// # Errors
    /// If the stream does not exist, or has no leader.
    pub async fn leader_of(&self, stream: &str) -> anyhow::Result<usize> {
        let client = self.client().await?;
        eventually(ELECTION, async || {
            let stream = jetstream::new(client.clone()).get_stream(stream).await?;
            let leader = stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone());
            let leader = leader.context("no leader")?;
            leader.strip_prefix('n').and_then(|n| n.parse().ok()).with_context(|| format!("{leader}?"))
        })
        .await
    }
}

/// Waits until all servers agree on a leader of the meta group, and it sees all of them.
pub(crate) async fn meta_leader(nodes: &[NatsServer]) -> anyhow::Result<()> {
    eventually(ELECTION, async || {
        for node in nodes {
            let url = format!("{}/jsz", node.monitor_url());
            let info: Value = serde_json::from_str(&http().get(url).send().await?.text().await?)?;
            let meta = &info["meta_cluster"];
            ensure!(meta["leader"].as_str().is_some_and(|leader| !leader.is_empty()), "no leader: {meta}");
            ensure!(meta["cluster_size"] == NODES, "not all servers have met: {meta}");
            // Only the leader reports the other servers.
            let peers = meta["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
            let away = peers.iter().find(|peer| peer["offline"] == true);
            ensure!(away.is_none(), "a server is offline: {away:?}");
        }
        Ok(())
    })
    .await
}
