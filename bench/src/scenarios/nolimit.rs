//! Events landed per second without a limit on requests: creates of distinct tasks, either stored before the clock
//! starts or published while it runs.
//!
//! Also measures the floors, with which the figure is compared.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use taskpipeline_simulator::{Latency, Simulator};
use taskpipeline_testkit::Process;
use tokio::process::Command;

use super::{rates, setup, spent};
use crate::course::{Course, Until};
use crate::events::Mix;
use crate::fleet::{Fleet, Launch, REPLICA, Setup};
use crate::floor;
use crate::measurement::{Findings, Knobs};
use crate::meter::Meter;
use crate::publisher::{Options, Publisher};
use crate::stage::Stage;
use crate::stats::{count, ratio};
use crate::system::{Kind, System};

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let setup = setup(false, knobs);
    let is_peer = matches!(system.kind, Kind::Peer | Kind::PeerFloor);
    let events = knobs.events_or(if is_peer { 20_000 } else { 600_000 });
    if system.kind == Kind::PeerFloor {
        return peer_floor(system, &setup, events).await;
    }
    let stored = system.kind.has_stream() && !knobs.live;
    // Each event is about a distinct task; otherwise fewer keys would be written than events came.
    let mix = Mix::creates(events.max(knobs.ids));
    let stage = Stage::new(false, Latency::LIKELY).await?;
    Fleet::make_streams(system.kind, &setup, &stage).await?;
    let mut meter = Meter::default();
    if stored {
        store(&stage, mix, events).await?;
    }
    let mut fleet = None;
    if !stored && !system.kind.is_floor() {
        fleet = Some(Fleet::start(system, &setup, &stage).await?);
    }
    stage.watch(&mut meter)?;
    let mut floor = None;
    if system.kind.is_floor() {
        let process = start_floor(&stage, events, system.kind == Kind::GuardedFloor)?;
        meter.watch_from_birth(REPLICA, process.pid().as_raw());
        floor = Some(process);
    }
    match &fleet {
        Some(fleet) => fleet.watch(&mut meter, false),
        None if floor.is_none() => {
            let spawned = Fleet::spawn(system, &setup, &stage)?;
            spawned.watch(&mut meter, true);
            fleet = Some(spawned);
        }
        None => {}
    }
    let mut course = if stored {
        Course::stored(&stage, &mut meter)
    } else {
        // Without a stream, waiting events are in the system's own memory.
        let usual = match system.kind {
            Kind::Core => 50_000,
            _ if system.kind.has_stream() => 100_000,
            _ => 10_000,
        };
        let backlog = if knobs.backlog == 0 { usual } else { knobs.backlog };
        Course::live(&stage, &mut meter, mix, system.kind.has_stream(), backlog)?
    };
    let seen = course.run(fleet.as_mut(), Until::Landed(events), None).await?;
    drop(course);
    if let Some(mut floor) = floor {
        let status = floor.wait(Duration::from_secs(30)).await?;
        ensure!(status.success(), "the floor failed\n{}", floor.tail());
    }
    stage.check_manners()?;
    let mut findings = Findings::default();
    rates(&mut findings, &seen);
    spent(&mut findings, &meter, &stage, count(events));
    findings.figure("keys written per event", ratio(stage.landed(), count(events)));
    Ok(findings)
}

/// Stores this many events in the stream.
pub(super) async fn store(stage: &Stage, mix: Mix, events: u64) -> anyhow::Result<()> {
    let mut publisher = Publisher::start(&Options::new(&stage.nats.url(), mix, true))?;
    publisher.allow(events).await?;
    publisher.finish().await?;
    ensure!(publisher.published() == events, "{} of {events} events are stored", publisher.published());
    Ok(())
}

/// Measures the peer's requests in a plain loop, which reports its own rate.
async fn peer_floor(system: System, setup: &Setup, events: u64) -> anyhow::Result<Findings> {
    let stage = Stage::new(false, Latency::LIKELY).await?;
    let mut process = Launch::new(system, setup, &stage.nats, &stage.kv).peer_floor(events)?;
    let status = process.wait(Duration::from_secs(120)).await?;
    ensure!(status.success(), "the peer's floor failed\n{}", process.tail());
    let told = process.lines().into_iter().find_map(|line| serde_json::from_str::<Value>(&line).ok());
    let told = told.with_context(|| process.tail())?;
    let figure =
        |name: &str| told[name].as_f64().with_context(|| format!("the peer's floor does not report {name}"));
    let mut findings = Findings::default();
    findings.figure("events/s", figure("perSecond")?);
    findings.figure("seconds", figure("seconds")?);
    findings.figure("requests per event", ratio(count(stage.kv.seen().total_requests()), count(events)));
    Ok(findings)
}

fn start_floor(stage: &Stage, events: u64, guarded: bool) -> anyhow::Result<Process> {
    let bulk_url = bulk_url(&stage.kv);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(floor::arguments(&stage.nats.url(), &bulk_url, &stage.kv.config().token, events));
    command.args(guarded.then_some("--guarded"));
    Process::spawn("floor", &mut command)
}

fn bulk_url(kv: &Simulator) -> String {
    let config = kv.config();
    format!("{}/accounts/{}/storage/kv/namespaces/{}/bulk", kv.base_url(), config.account, config.namespace)
}
