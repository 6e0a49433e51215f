//! Carries out the faults of the nats-servers and of their streams, one after another.
//!
//! A fault that counts only if something met it is counted at the end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use tokio::time::{sleep, sleep_until};

use super::events::Publication;
use super::moment::Strike;
use super::nats_fault::{LedgerLimit, NatsFault, Node};
use super::settle::{Glance, LEDGER, STREAM, consumed};
use super::stage::Stage;
use super::strike::PAST_ACK_WAIT;
use crate::eventually;

/// The time limit for the replicas to take in all events of the stream, including unacked messages of dead replicas.
const TAKEN_IN: Duration = Duration::from_secs(60);

/// A consumer that reads nothing.
const IDLE: &str = "idle";

/// The time limit for a change of a stream, including an election of its leader.
const CHANGED: Duration = Duration::from_secs(30);

impl Stage {
    /// Carries out all faults of the nats-servers.
    ///
    /// # Errors
    /// If the harness cannot carry one out.
    pub(crate) async fn nats_lane(&self) -> anyhow::Result<()> {
        for Strike { at, fault } in &self.plan.nats_faults {
            sleep_until(self.timeline.start() + *at).await;
            self.timeline.note(format_args!("== {}", fault.name()));
            let struck = match fault {
                NatsFault::Kill { down } => self.kill_nats(*down).await,
                NatsFault::Stop { lasting } => self.stop_nats(*lasting).await,
                NatsFault::NodeKilled { node, down } => self.kill_node(*node, *down).await,
                NatsFault::NodeStopped { node, lasting } => self.stop_node(*node, *lasting).await,
                NatsFault::Recreated { by_harness } => self.recreate_stream(*by_harness).await,
                NatsFault::TailLost { before, tail, after, kill_replica, .. } => {
                    self.lose_tail([before, tail, after], *kill_replica).await
                }
                NatsFault::LedgerRefuses { limit, lasting } => self.limit_ledger(*limit, *lasting).await,
                NatsFault::StoreFull { room, lasting } => self.fill_store(*room, *lasting).await,
            };
            struck.with_context(|| format!("while: {}", fault.name()))?;
            self.timeline.note(format_args!("== {}: done", fault.name()));
            self.count(fault.name(), u64::from(!fault.is_counted_at_the_end()));
        }
        Ok(())
    }

    /// Counts the shortages that a write of the ledger, or a publish, has met.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn count_shortages(&self) -> anyhow::Result<()> {
        if self.plan.little_room {
            let first = self.jetstream.get_stream(STREAM).await?.cached_info().state.first_sequence;
            self.count("events make room", u64::from(first > 1));
        }
        let logs = self.fleet.lock().await.logs();
        let refused = |why: &str| {
            let waits = |line: &String| line.contains("have to wait") && line.contains(why);
            logs.iter().any(|(_, lines)| lines.iter().any(waits))
        };
        for Strike { fault, .. } in &self.plan.nats_faults {
            let met = match fault {
                NatsFault::LedgerRefuses { limit, .. } => refused(limit.refusal()),
                NatsFault::StoreFull { .. } => self.producer.refused() > 0,
                _ => continue,
            };
            self.count(fault.name(), u64::from(met));
        }
        Ok(())
    }

    async fn kill_nats(&self, down: Duration) -> anyhow::Result<()> {
        let mut nats = self.nats.lock().await;
        let nats = nats.one()?;
        nats.kill().await?;
        sleep(down).await;
        nats.restart().await
    }

    async fn stop_nats(&self, lasting: Duration) -> anyhow::Result<()> {
        let mut nats = self.nats.lock().await;
        let nats = nats.one()?;
        nats.pause(true)?;
        sleep(lasting).await;
        nats.pause(false)
    }

    async fn kill_node(&self, node: Node, down: Duration) -> anyhow::Result<()> {
        let mut nats = self.nats.lock().await;
        let nats = nats.three()?;
        let n = number(nats, node).await?;
        self.timeline.note(format_args!("SIGKILL to n{n}, which was {node:?}"));
        nats.kill(n).await?;
        sleep(down).await;
        nats.restart(n).await
    }

    async fn stop_node(&self, node: Node, lasting: Duration) -> anyhow::Result<()> {
        let mut nats = self.nats.lock().await;
        let nats = nats.three()?;
        let n = number(nats, node).await?;
        self.timeline.note(format_args!("SIGSTOP to n{n}, which is {node:?}"));
        let server = nats.node(n).context("no such server")?;
        server.pause(true)?;
        sleep(lasting).await;
        server.pause(false)?;
        // At most one server is down, or behind, at a time.
        nats.whole().await
    }

    async fn recreate_stream(&self, by_harness: bool) -> anyhow::Result<()> {
        let fleet = self.fleet.lock().await;
        let silence = self.gate.write().await;
        let mut capture = self.capture.lock().await;
        self.all_taken_in(capture.incarnation()).await?;
        capture.sweep(&self.jetstream).await?;
        let config = self.jetstream.get_stream(STREAM).await?.cached_info().config.clone();
        self.jetstream.delete_stream(STREAM).await?;
        self.timeline.note(format_args!("deleted the stream; the harness creates it again: {by_harness}"));
        capture.begin_incarnation(1);
        self.producer.forget_promises();
        if by_harness {
            // A replica may have been faster.
            let create = async || {
                self.jetstream.get_or_create_stream(config.clone()).await?;
                Ok(())
            };
            eventually(CHANGED, create).await?;
        }
        drop((capture, silence, fleet));
        Ok(())
    }

    async fn lose_tail(
        &self,
        [before, tail, after]: [&[Publication]; 3],
        kill_replica: bool,
    ) -> anyhow::Result<()> {
        let mut fleet = self.fleet.lock().await;
        let silence = self.gate.write().await;
        let mut capture = self.capture.lock().await;
        if !before.is_empty() {
            // Only two replicas take part, so that the events of one come to the other: each replica has its own mark.
            let others = (2..fleet.count()).collect();
            fleet.drain(others).await?;
            fleet.fill_up(2)?;
        }
        self.all_taken_in(capture.incarnation()).await?;
        let glance = Glance::take(&self.jetstream).await?;
        if !before.is_empty() {
            // The replica has requested events, and gets its share of these.
            fleet.pause(0, true)?;
            self.producer.acked(before).await?;
        }
        let last = Glance::take(&self.jetstream).await?.stream_last;
        let copies = tempfile::TempDir::new()?;
        let copy = copies.path().join("copy");
        let mut nats = self.nats.lock().await;
        let nats = nats.one()?;
        nats.stop().await?;
        copy_dir(&nats.stream_dir(STREAM), &copy)?;
        nats.restart().await?;

        self.producer.acked(tail).await?;
        if !before.is_empty() {
            sleep(PAST_ACK_WAIT).await;
        }
        self.all_taken_in(capture.incarnation()).await?;
        capture.sweep(&self.jetstream).await?;
        let now = Glance::take(&self.jetstream).await?;
        let lost = now.stream_last - last;
        ensure!(lost > 0, "the tail is empty");
        if !before.is_empty() {
            let again = now.repeats() - glance.repeats();
            self.timeline
                .note(format_args!("{again} events from before the tail were delivered again after it"));
            self.count("redelivery before a lost tail", u64::from(again > 0));
            fleet.pause(0, false)?;
        }
        nats.stop().await?;
        std::fs::remove_dir_all(nats.stream_dir(STREAM))?;
        copy_dir(&copy, &nats.stream_dir(STREAM))?;
        if kill_replica {
            fleet.kill(0).await?;
        }
        nats.restart().await?;
        self.timeline.note(format_args!("the stream lost {lost} messages after {last}"));
        capture.begin_incarnation(last + 1);
        self.producer.forget_promises();
        fleet.fill_up(self.plan.replicas)?;
        self.producer.acked(after).await?;
        drop((capture, silence, fleet));
        Ok(())
    }

    async fn limit_ledger(&self, limit: LedgerLimit, lasting: Duration) -> anyhow::Result<()> {
        let enlarged = self.change(LEDGER, |config, messages, bytes| match limit {
            LedgerLimit::Records(more) => config.max_messages = messages.saturating_add(more),
            LedgerLimit::Bytes(more) => config.max_bytes = bytes.saturating_add(more),
            LedgerLimit::Size(most) => config.max_message_size = most,
        });
        let enlarged = enlarged.await?;
        self.timeline.note(format_args!("the ledger is limited: {limit:?}"));
        sleep(lasting).await;
        self.set(enlarged).await
    }

    async fn fill_store(&self, room: u64, lasting: Duration) -> anyhow::Result<()> {
        let room = i64::try_from(room).unwrap_or(i64::MAX);
        // A consumer that has read nothing keeps the replicas from making room. The next session creates a deleted
        // stream again.
        let stream = eventually(CHANGED, async || Ok(self.jetstream.get_stream(STREAM).await?)).await?;
        let idle = consumer::pull::Config {
            durable_name: Some(IDLE.to_owned()),
            ..consumer::pull::Config::default()
        };
        stream.create_consumer(idle).await?;
        let enlarged = self.change(STREAM, |config, _, bytes| {
            config.max_bytes = bytes.saturating_add(room).max(1);
            config.discard = DiscardPolicy::New;
        });
        let enlarged = enlarged.await?;
        sleep(lasting).await;
        self.set(enlarged).await?;
        eventually(CHANGED, async || Ok(stream.delete_consumer(IDLE).await.map(drop)?)).await
    }

    /// Changes a stream, depending on its number of messages and bytes. Returns its former configuration.
    async fn change(&self, stream: &str, change: impl Fn(&mut Config, i64, i64)) -> anyhow::Result<Config> {
        let before = eventually(CHANGED, async || {
            let stream = self.jetstream.get_stream(stream).await?;
            Ok(stream.cached_info().config.clone())
        });
        let before = before.await?;
        // A cluster may do a change without an answer: the next attempt finds it done.
        eventually(CHANGED, async || {
            let stream = self.jetstream.get_stream(stream).await?;
            let state = &stream.cached_info().state;
            let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            let mut config = before.clone();
            change(&mut config, count(state.messages), count(state.bytes));
            self.jetstream.update_stream(config).await?;
            Ok(())
        })
        .await?;
        Ok(before)
    }

    async fn set(&self, config: Config) -> anyhow::Result<()> {
        let set = async || {
            self.jetstream.update_stream(config.clone()).await?;
            Ok(())
        };
        eventually(CHANGED, set).await
    }

    async fn all_taken_in(&self, incarnation: u32) -> anyhow::Result<()> {
        consumed(&self.jetstream, incarnation, TAKEN_IN).await
    }
}

async fn number(cluster: &crate::NatsCluster, node: Node) -> anyhow::Result<usize> {
    match node {
        Node::Number(n) => Ok(n),
        Node::LeadsEvents => cluster.leader_of(STREAM).await,
        Node::LeadsLedger => cluster.leader_of(LEDGER).await,
    }
}

fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
