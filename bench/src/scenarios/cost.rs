//! The cost of a steady, mixed load: CPU time, requests, keys written and their price, memory. Every system gets the
//! same events at the same rate.

use std::time::Duration;

use taskpipeline_simulator::Latency;

use super::{setup, spent};
use crate::events::mixed;
use crate::fleet::Fleet;
use crate::measurement::{Findings, Knobs};
use crate::meter::Meter;
use crate::pace;
use crate::stage::Stage;
use crate::stats::{count, ratio};
use crate::system::System;

/// The default rate, in events a second.
const RATE: u64 = 500;
/// The number of ids over which the events are spread.
const IDS: u64 = 3_000;
/// Cloudflare's price of a million keys written, deleted or listed.
const DOLLARS_PER_MILLION_KEYS: f64 = 5.0;

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let limited = !knobs.unlimited;
    let rate = if knobs.rate == 0 { RATE } else { knobs.rate };
    let events = rate * knobs.time_or(Duration::from_secs(40)).as_secs();
    let stage = Stage::new(limited, Latency::LIKELY).await?;
    let fleet = Fleet::start(system, &setup(limited, knobs), &stage).await?;
    let client = stage.nats.client().await?;
    let mut meter = Meter::default();
    stage.watch(&mut meter)?;
    fleet.watch(&mut meter, false);
    pace::publish(&client, rate, events, |place| mixed(place, IDS), |_, _| ()).await?;
    let settled = stage.quiet(Duration::from_secs(5), Duration::from_secs(60)).await;
    meter.look();
    let mut findings = Findings::default();
    spent(&mut findings, &meter, &stage, count(events));
    let keys = stage.landed();
    findings.figure("keys written per event", ratio(keys, count(events)));
    let dollars = keys / 1_000_000.0 * DOLLARS_PER_MILLION_KEYS;
    findings.figure("dollars per million events", ratio(dollars, count(events)) * 1_000_000.0);
    if !settled {
        findings.note("the system still wrote a minute after the last event");
    }
    Ok(findings)
}
