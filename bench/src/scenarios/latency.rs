//! The time from publishing an event until it is in KV, at a steady rate. Each event is about a distinct task.
//!
//! The simulator's latency is constant here, so that the share of the pipeline can be computed.

use std::time::Duration;

use taskpipeline_simulator::Latency;
use tokio::time::Instant;

use super::setup;
use crate::events::Kind;
use crate::fleet::Fleet;
use crate::landings::Landings;
use crate::measurement::{Findings, Knobs};
use crate::pace;
use crate::stage::Stage;
use crate::stats::{count, percentile, ratio};
use crate::system::System;

/// The time of KV for every answer, in milliseconds: about the mean of the simulator's default.
const KV_MILLISECONDS: u32 = 100;

/// The time limit for the last events.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let limited = !knobs.unlimited;
    let setup = setup(limited, knobs);
    let time = knobs.time_or(Duration::from_secs(60));
    let rate = knobs.rate.max(1);
    let events = rate * time.as_secs();
    let least = Duration::from_millis(KV_MILLISECONDS.into());
    let stage = Stage::new(limited, Latency { least, ..Latency::NONE }).await?;
    let fleet = Fleet::start(system, &setup, &stage).await?;
    let client = stage.nats.client().await?;
    let landings = Landings::default();
    let began = Instant::now();
    let publish = pace::publish(
        &client,
        rate,
        events,
        |place| (Kind::Created, place),
        |place, at| landings.published(place, at),
    );
    let all = async {
        publish.await?;
        let ended = Instant::now();
        while landings.waiting() > 0 && ended.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = all => done?,
        () = landings.watch(&stage) => {}
    }
    // This is a warm-up. At a rate for which the budget does not allow single requests, the full bucket flatters the
    // first half.
    let warm = if rate == 1 { Duration::from_secs(3).min(time / 4) } else { time / 2 };
    let took = landings.took(began + warm);
    let mut findings = Findings::default();
    let at = |share| percentile(&took, share).unwrap_or_default();
    let kv = f64::from(KV_MILLISECONDS);
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("most", 1.0)] {
        findings.figure(&format!("{name}, ms"), at(share));
        findings.figure(&format!("{name} above KV's own, ms"), at(share) - kv);
    }
    findings.figure("events measured", count(took.len()));
    findings.figure("events that never landed", count(landings.waiting()));
    let seen = stage.kv.seen();
    findings.figure("requests per event", ratio(count(seen.total_requests()), count(events)));
    findings.figure("429s", count(seen.throttled));
    drop(fleet);
    Ok(findings)
}
