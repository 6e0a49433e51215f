//! Many updates a second to one task: the number of writes to its key, and whether the last update wins.

use std::collections::VecDeque;
use std::time::Duration;

use taskpipeline_simulator::Latency;
use tokio::time::Instant;

use super::setup;
use crate::events::{Kind, task_id};
use crate::fleet::Fleet;
use crate::measurement::{Findings, Knobs};
use crate::pace;
use crate::stage::Stage;
use crate::stats::{count, ratio};
use crate::system::System;

/// The rate, in updates a second.
const RATE: u64 = 1_000;

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let rate = if knobs.rate == 0 { RATE } else { knobs.rate };
    let events = rate * knobs.time_or(Duration::from_secs(30)).as_secs();
    let limited = !knobs.unlimited;
    let stage = Stage::new(limited, Latency::LIKELY).await?;
    let fleet = Fleet::start(system, &setup(limited, knobs), &stage).await?;
    let client = stage.nats.client().await?;
    let mut most = 0_u64;
    let all = async {
        let at = |place| (if place == 0 { Kind::Created } else { Kind::Updated }, 0);
        pace::publish(&client, rate, events, at, |_, _| ()).await?;
        anyhow::Ok(stage.quiet(Duration::from_secs(12), Duration::from_secs(90)).await)
    };
    let settled = tokio::select! {
        settled = all => settled?,
        () = watch(&stage, &mut most) => false,
    };
    let written = stage.landed();
    let wanted = format!("Change number {}", events - 1);
    let last = stage.task(&task_id(0)).is_some_and(|task| task["title"] == wanted.as_str());
    let mut findings = Findings::default();
    findings.figure("events", count(events));
    findings.figure("writes", written);
    findings.figure("events per write", ratio(count(events), written));
    findings.figure("most writes in a second", count(most));
    findings.figure("written too soon", count(stage.kv.seen().writes_too_soon));
    findings.figure("the last one won (1: yes)", f64::from(u8::from(last)));
    if !settled {
        findings.note("the system still wrote 90 s after the last event");
    }
    drop(fleet);
    Ok(findings)
}

/// Counts the writes of each second that ends now.
async fn watch(stage: &Stage, most: &mut u64) {
    let (mut latest, mut before) = (VecDeque::new(), 0_u64);
    loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let (now, seen) = (Instant::now(), stage.kv.seen().keys_put);
        latest.extend((before..seen).map(|_| now));
        before = seen;
        while latest
            .front()
            .is_some_and(|first: &Instant| now.duration_since(*first) >= Duration::from_secs(1))
        {
            latest.pop_front();
        }
        *most = (*most).max(u64::try_from(latest.len()).unwrap_or(u64::MAX));
    }
}
