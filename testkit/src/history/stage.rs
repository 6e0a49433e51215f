//! The stage of a history: nats-server, the simulator, the replicas, and the state of the harness.
//!
//! This module opens and owns them; `strike` and `run` use them.

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
use super::servers::Running;
use super::settings_file::SettingsFile;
use super::settle::{STREAM, controls};
use super::timeline::Timeline;
use crate::ProcessorOptions;

/// The stage of a history.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) plan: Plan,
    pub(crate) nats: Mutex<Running>,
    pub(crate) kv: Simulator,
    /// Another KV namespace, with the same tasks before the start.
    pub(crate) second: Simulator,
    /// The replicas that write to `second` all the time, if the plan has any.
    pub(crate) beside: Mutex<Fleet>,
    /// The options of replicas that write to the first namespace, and to the second.
    pub(crate) to_first: ProcessorOptions,
    pub(crate) to_second: ProcessorOptions,
    /// The control records of the namespaces that are written all the time.
    pub(crate) controls: Vec<String>,
    /// The settings that the replicas follow, except in an outage.
    pub(crate) settings: SettingsFile,
    /// The lock for a task that changes the replicas, or needs them undisturbed.
    pub(crate) fleet: Mutex<Fleet>,
    pub(crate) capture: Mutex<Capture>,
    /// Locked for reading while a burst is published, and for writing by a task that needs silence. Lock it after `fleet`.
    pub(crate) gate: RwLock<()>,
    pub(crate) producer: Producer,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) timeline: Arc<Timeline>,
    /// The time that settling took.
    pub(crate) rest: Mutex<Duration>,
    fired: Lock<BTreeMap<String, u64>>,
}

impl Stage {
    /// Opens the stage, with the first replicas ready.
    ///
    /// # Errors
    /// If a part does not start.
    pub(crate) async fn open(plan: Plan) -> anyhow::Result<Self> {
        let nats = Running::start(plan.servers, plan.accounts).await?;
        let kv = namespace("first", &plan).await?;
        let second = namespace("second", &plan).await?;
        let timeline = Arc::new(Timeline::new());
        let settings = SettingsFile::new(&plan, nats.url())?;
        let (to_first, to_second) = (
            options(&plan, &settings, nats.options(&kv)?),
            options(&plan, &settings, nats.options(&second)?),
        );
        let mut fleet = Fleet::new("replica", to_first.clone(), Arc::clone(&timeline));
        let mut beside = Fleet::new("second", to_second.clone(), Arc::clone(&timeline));
        let (_, jetstream) = connect(&nats.url(), nats.harness()).await?;
        let name = format!("history-{}", plan.seed);
        let producer = Producer::new(&nats.url(), nats.producer(), name).await?;
        fleet.fill_up(plan.replicas)?;
        fleet.ready().await.context("the first replicas do not get ready")?;
        let mut written = controls(&jetstream, 1).await?;
        if plan.second.is_some() {
            beside.fill_up(1)?;
            beside.ready().await.context("the replica of the second namespace does not get ready")?;
            written = controls(&jetstream, 2).await?;
        }
        Ok(Self {
            plan,
            nats: Mutex::new(nats),
            kv,
            second,
            beside: Mutex::new(beside),
            to_first,
            to_second,
            controls: written,
            settings,
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

    /// How many requests to KV this fault has met.
    pub(crate) fn befell(&self, fault: &str) -> u64 {
        self.kv.seen().fault(fault)
    }
}

/// Starts a KV namespace with its initial content.
async fn namespace(name: &str, plan: &Plan) -> anyhow::Result<Simulator> {
    let latency =
        Latency { least: Duration::from_millis(5), tail: Duration::from_millis(2), ..Latency::NONE };
    let namespace = name.to_owned();
    let kv = Simulator::start(Config { namespace, latency, rate_limit: None, ..Config::default() }).await?;
    for id in &plan.seeded {
        kv.seed(&format!("tasks:{id}"), seeded_value(id).to_string());
    }
    Ok(kv)
}

/// Returns the processor's settings, scaled so that a history takes seconds instead of minutes.
///
/// Settings that may change at run time are in the file. But the file does not allow events that live for only a few seconds.
fn options(plan: &Plan, file: &SettingsFile, options: ProcessorOptions) -> ProcessorOptions {
    let settle_after = format!("{}s", plan.settle_after.as_secs());
    let settings = [("ACK_WAIT", "3s"), ("SHUTDOWN_GRACE", "5s"), ("RUST_LOG", "warn")];
    let of_an_outage = [
        ("STREAM_MAX_AGE", "8s"),
        ("SETTLE_AFTER", settle_after.as_str()),
        ("REQUEST_TIMEOUT", "1s"),
        ("REQUEST_BUDGET", "200000/5m"),
        ("RETRY_DELAYS", "100ms,200ms,400ms"),
        ("MIN_WRITE_INTERVAL", "50ms"),
        ("BATCH_MAX_KEYS", "500"),
    ];
    let set = |options: ProcessorOptions, (name, value): &(&str, &str)| options.set(name, value);
    let options = settings.iter().fold(options, set);
    match plan.shape {
        Shape::Mixed => options.following(&file.path()),
        Shape::Outage => of_an_outage.iter().fold(options, set),
    }
}
