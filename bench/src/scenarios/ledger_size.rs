//! The cost per event by the number of existing tasks.
//!
//! The tasks are created through the system. A third of the following events are updates, each of another one of
//! them. The rest are creates of new tasks. No limit applies, so that CPU time is measured.

use taskpipeline_simulator::Latency;

use super::setup;
use crate::course::{Course, Until};
use crate::events::Mix;
use crate::fleet::{Fleet, REPLICA};
use crate::measurement::{Findings, Knobs};
use crate::meter::Meter;
use crate::stage::{NATS, Stage};
use crate::stats::{count, median, rate_within, ratio};
use crate::system::System;

/// The number of events in one measurement: so few that each update is of another task even in the smallest ledger.
const EVENTS: u64 = 30_000;
/// The number of repeats; the median counts.
const TIMES: u64 = 3;
/// The largest number of events that wait in front of the system.
const BACKLOG: u64 = 50_000;

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let tasks = if knobs.tasks == 0 { 10_000 } else { knobs.tasks };
    let stage = Stage::new(false, Latency::LIKELY).await?;
    let mut fleet = Fleet::start(system, &setup(false, knobs), &stage).await?;
    let acked = system.kind.has_stream();
    let mut warm = Meter::default();
    let mut filling = Course::live(&stage, &mut warm, Mix::creates(tasks), acked, BACKLOG)?;
    filling.run(Some(&mut fleet), Until::Landed(tasks), None).await?;
    filling.drain(std::time::Duration::from_secs(5)).await?;
    let (mut replicas, mut nats, mut rates, mut peaks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for time in 0..TIMES {
        // The wait lets the keys rest, because the system writes no key more than once a second.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let mut meter = Meter::default();
        stage.watch(&mut meter)?;
        fleet.watch(&mut meter, false);
        // The new tasks of each repeat are beyond those of the earlier repeats, which are few.
        let mix = Mix { existing: tasks, skip: time * EVENTS, ..Mix::creates(EVENTS) };
        let mut course = Course::live(&stage, &mut meter, mix, acked, BACKLOG)?;
        let seen = course.run(Some(&mut fleet), Until::Landed(EVENTS), None).await?;
        drop(course);
        replicas.push(ratio(meter.cpu_of(REPLICA), count(EVENTS)) * 1e6);
        nats.push(ratio(meter.cpu_of(NATS), count(EVENTS)) * 1e6);
        rates.push(rate_within(&seen.landed, 0.1, 1.0).unwrap_or_default());
        peaks.push(meter.peak_of(REPLICA));
    }
    let mut findings = Findings::default();
    findings.figure("tasks before", count(tasks));
    findings.figure("CPU µs per event, replicas", median(&replicas).unwrap_or_default());
    findings.figure("CPU µs per event, nats-server", median(&nats).unwrap_or_default());
    let rate = median(&rates).unwrap_or_default();
    findings.figure("events/s", rate);
    findings.figure("µs per event", ratio(1e6, rate));
    findings.figure("peak memory of a replica, MB", median(&peaks).unwrap_or_default());
    Ok(findings)
}
