//! One malformed message between two valid ones: whether those land, whether the replica continues, and whether the
//! message is kept anywhere.

use std::time::Duration;

use futures_util::StreamExt;
use taskpipeline_simulator::Latency;
use taskpipeline_testkit::{created, publish};

use super::setup;
use crate::fleet::Fleet;
use crate::measurement::{Findings, Knobs};
use crate::stage::Stage;
use crate::stats::count;
use crate::system::System;

/// A message that is cut off in the middle, as from a producer with a bug.
const MALFORMED: &str = r#"{"correlationId": "bench-bad", "data": {"id": "bad", "title": "#;

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let stage = Stage::new(true, Latency::LIKELY).await?;
    let fleet = Fleet::start(system, &setup(true, knobs), &stage).await?;
    let client = stage.nats.client().await?;
    let mut letters = client.subscribe("dead-letters.>").await?;
    client.flush().await?;
    publish(&client, "created", &created("before")).await?;
    client.publish("tasks.created", MALFORMED.into()).await?;
    publish(&client, "created", &created("after")).await?;
    client.flush().await?;
    let kept = tokio::time::timeout(Duration::from_secs(5), letters.next()).await.is_ok();
    stage.quiet(Duration::from_secs(2), Duration::from_secs(30)).await;
    let landed = ["before", "after"].iter().filter(|id| stage.task(id).is_some()).count();
    let mut findings = Findings::default();
    findings.figure("good messages landed, of 2", count(landed));
    findings.figure("malformed messages kept, of 1", f64::from(u8::from(kept)));
    findings.figure("replicas ready afterwards, of 1", count(fleet.how_many_ready().await));
    Ok(findings)
}
