//! Events lost after a kill -9: creates of distinct tasks at a steady rate. In the middle, the replica that writes to
//! KV is killed and another one started. At the end, the tasks that are missing in KV are counted.

use std::time::Duration;

use taskpipeline_simulator::Latency;

use super::setup;
use crate::events::{Kind, task_id};
use crate::fleet::Fleet;
use crate::measurement::{Findings, Knobs};
use crate::meter::Meter;
use crate::pace;
use crate::stage::Stage;
use crate::stats::count;
use crate::system::System;

/// The rate, in events a second.
const RATE: u64 = 500;
/// The time without a request after which no more comes. NATS delivers an event without an ack again after 30 s. The
/// peer waits at most 20 s before it tries again.
const QUIET: Duration = Duration::from_secs(36);
/// The limit of the wait.
const LONGEST: Duration = Duration::from_secs(120);

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let rate = if knobs.rate == 0 { RATE } else { knobs.rate };
    let time = knobs.time_or(Duration::from_secs(16));
    let events = rate * time.as_secs();
    let limited = !knobs.unlimited;
    let stage = Stage::new(limited, Latency::LIKELY).await?;
    let mut fleet = Fleet::start(system, &setup(limited, knobs), &stage).await?;
    let client = stage.nats.client().await?;
    let mut meter = Meter::default();
    let publish = pace::publish(&client, rate, events, |place| (Kind::Created, place), |_, _| ());
    let kill = async {
        tokio::time::sleep(time / 2).await;
        let active = fleet.active().await;
        fleet.kill(active).await?;
        fleet.add(&mut meter).await
    };
    let (published, killed) = tokio::join!(publish, kill);
    published.and(killed)?;
    let missing = || (0..events).filter(|task| stage.task(&task_id(*task)).is_none()).count();
    let began = tokio::time::Instant::now();
    let complete = async {
        while missing() > 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = complete => {}
        // Missing tasks may still arrive, but not after a silence longer than any delay.
        _ = stage.quiet(QUIET, LONGEST) => {}
    }
    let took = began.elapsed().as_secs_f64();
    let mut findings = Findings::default();
    findings.figure("events published", count(events));
    findings.figure("events lost", count(missing()));
    findings.figure("seconds until nothing was missing, or given up", took);
    Ok(findings)
}
