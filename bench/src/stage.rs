//! The surroundings of every system: a nats-server as a process, and a simulator of Cloudflare KV in this process.
//!
//! The CPU time of this process is therefore almost only the simulator's. Both are new for each measurement.

use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use taskpipeline_simulator::{Config, Latency, RateLimit, Simulator};
use taskpipeline_testkit::NatsServer;
use tokio::time::Instant;

use crate::meter::Meter;
use crate::stats::count;

/// The nats-server and the simulator.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The nats-server.
    pub(crate) nats: NatsServer,
    /// The simulator of Cloudflare KV.
    pub(crate) kv: Simulator,
}

/// The role of nats-server in a [`Meter`].
pub(crate) const NATS: &str = "nats-server";
/// The role of the simulator in a [`Meter`].
pub(crate) const SIMULATOR: &str = "simulator";
/// The role of the publisher in a [`Meter`].
pub(crate) const PUBLISHER: &str = "publisher";

impl Stage {
    /// Starts both, with Cloudflare's limit on requests or without one.
    pub(crate) async fn new(limited: bool, latency: Latency) -> anyhow::Result<Self> {
        let rate_limit = limited.then_some(RateLimit::CLOUDFLARE);
        let nats = NatsServer::start().await?;
        let kv = Simulator::start(Config { rate_limit, latency, ..Config::default() }).await?;
        Ok(Self { nats, kv })
    }

    /// Lets the meter watch both.
    pub(crate) fn watch(&self, meter: &mut Meter) -> anyhow::Result<()> {
        meter.watch(NATS, self.nats.process().pid().as_raw());
        meter.watch(SIMULATOR, i32::try_from(std::process::id())?);
        Ok(())
    }

    /// The number of keys written or deleted. If every event is about a distinct task, this is the number of landed events.
    pub(crate) fn landed(&self) -> f64 {
        let seen = self.kv.seen();
        count(seen.keys_put + seen.keys_deleted)
    }

    /// The largest number of requests in any window of five minutes.
    pub(crate) fn most_in_a_window(&self) -> f64 {
        count(self.kv.seen().most_in_sliding_window)
    }

    /// Waits until no request has come for `quiet`, at most for `longest`. Returns whether that happened.
    pub(crate) async fn quiet(&self, quiet: Duration, longest: Duration) -> bool {
        let began = Instant::now();
        let (mut requests, mut changed) = (self.kv.seen().total_requests(), Instant::now());
        while changed.elapsed() < quiet {
            if began.elapsed() > longest {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = self.kv.seen().total_requests();
            if now != requests {
                (requests, changed) = (now, Instant::now());
            }
        }
        true
    }

    /// The task's value in KV.
    pub(crate) fn task(&self, id: &str) -> Option<Value> {
        serde_json::from_slice(&self.kv.get(&format!("tasks:{id}"))?.value).ok()
    }

    /// Checks that the system did nothing that Cloudflare forbids.
    pub(crate) fn check_manners(&self) -> anyhow::Result<()> {
        let seen = self.kv.seen();
        ensure!(seen.refused == 0, "the simulator refused {} requests", seen.refused);
        Ok(())
    }
}
