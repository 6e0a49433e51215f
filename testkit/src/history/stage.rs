//! What a history is played on: nats-server, the simulator, the replicas, and what the harness itself keeps.
//! It holds and opens them; what happens on it is `strike`'s and `run`'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use taskpipeline_simulator::{Config, Latency, Simulator};
use tokio::sync::{Mutex, RwLock};

use super::capture::Capture;
use super::events::seeded_value;
use super::fleet::Fleet;
use super::plan::{Plan, Shape};
use super::publish::{Producer, connect};
use super::settle::STREAM;
use super::timeline::Timeline;
use crate::{NatsServer, ProcessorOptions};

/// All of it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) plan: Plan,
    pub(crate) nats: Mutex<NatsServer>,
    pub(crate) kv: Simulator,
    /// Who holds it does something to the replicas, or needs them undisturbed.
    pub(crate) fleet: Mutex<Fleet>,
    pub(crate) capture: Mutex<Capture>,
    /// Read while a burst is published; written by who needs silence. To be asked for after the fleet.
    pub(crate) gate: RwLock<()>,
    pub(crate) producer: Producer,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) timeline: Arc<Timeline>,
    /// How long it took to come to rest.
    pub(crate) rest: Mutex<Duration>,
    fired: Lock<BTreeMap<String, u64>>,
}

impl Stage {
    /// Opens it, with the first replicas ready.
    ///
    /// # Errors
    /// Where something does not start.
    pub(crate) async fn open(plan: Plan) -> anyhow::Result<Self> {
        let nats = NatsServer::start().await?;
        let latency =
            Latency { least: Duration::from_millis(5), tail: Duration::from_millis(2), ..Latency::NONE };
        let kv = Simulator::start(Config { latency, rate_limit: None, ..Config::default() }).await?;
        for id in &plan.seeded {
            kv.seed(&format!("tasks:{id}"), seeded_value(id).to_string());
        }
        let timeline = Arc::new(Timeline::new());
        let mut fleet = Fleet::new(options(&plan, &nats, &kv), Arc::clone(&timeline));
        let (_, jetstream) = connect(&nats.url()).await?;
        let producer = Producer::new(&nats.url(), format!("history-{}", plan.seed)).await?;
        fleet.fill_up(plan.replicas)?;
        fleet.ready().await.context("the first replicas do not get ready")?;
        Ok(Self {
            plan,
            nats: Mutex::new(nats),
            kv,
            fleet: Mutex::new(fleet),
            capture: Mutex::new(Capture::new(STREAM)),
            gate: RwLock::new(()),
            producer,
            jetstream,
            timeline,
            rest: Mutex::default(),
            fired: Lock::default(),
        })
    }

    /// Counts a fault that has happened.
    pub(crate) fn count(&self, kind: &str, times: u64) {
        let mut fired = self.fired.lock().unwrap_or_else(PoisonError::into_inner);
        *fired.entry(kind.to_owned()).or_default() += times;
    }

    /// The faults that have happened, by kind.
    pub(crate) fn fired(&self) -> BTreeMap<String, u64> {
        self.fired.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often this fault has befallen a request to KV.
    pub(crate) fn befell(&self, fault: &str) -> u64 {
        self.kv.seen().fault(fault)
    }
}

/// The processor's settings, scaled so that a history takes seconds and not minutes.
fn options(plan: &Plan, nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    let age = if plan.shape == Shape::Outage { "8s" } else { "72h" };
    let settle_after = format!("{}s", plan.settle_after.as_secs());
    let settings = [
        ("STREAM_MAX_AGE", age),
        ("ACK_WAIT", "3s"),
        ("SETTLE_AFTER", settle_after.as_str()),
        ("REQUEST_TIMEOUT", "1s"),
        ("REQUEST_BUDGET", "200000/5m"),
        ("RETRY_DELAYS", "100ms,200ms,400ms"),
        ("MIN_WRITE_INTERVAL", "50ms"),
        ("BATCH_MAX_KEYS", "500"),
        ("SHUTDOWN_GRACE", "5s"),
        ("RUST_LOG", "warn"),
    ];
    settings.iter().fold(ProcessorOptions::new(nats, kv), |options, (name, value)| options.set(name, value))
}
