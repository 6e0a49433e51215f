//! From publishing an event to its being in KV, at a steady rate, each event about a task of its own. The
//! simulator's latency is a constant here, so that what the pipeline adds to it can be told.

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

/// How long KV takes for every answer, in milliseconds: about the mean of the simulator's usual.
const KV_MILLISECONDS: u32 = 100;

/// How long to wait for the last ones.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures it once.
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
    // Warm-up. At a rate that the budget does not cover one by one, the full bucket flatters the first half.
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
