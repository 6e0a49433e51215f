//! The time from the start of the process until it is ready. Streams and consumers exist already, as at every start
//! except the first.

use std::time::Duration;

use anyhow::ensure;
use taskpipeline_simulator::Latency;
use taskpipeline_testkit::http;
use tokio::time::Instant;

use super::setup;
use crate::fleet::Fleet;
use crate::measurement::{Findings, Knobs};
use crate::stage::Stage;
use crate::stats::{median, spread};
use crate::system::System;

/// The number of starts in one measurement.
const TIMES: u32 = 5;

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let stage = Stage::new(true, Latency::LIKELY).await?;
    let setup = setup(true, knobs);
    // This start creates the streams, and brings the program's file into the system's cache.
    Fleet::start(system, &setup, &stage).await?.terminate().await?;
    let http = http();
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let began = Instant::now();
        let fleet = Fleet::spawn(system, &setup, &stage)?;
        for url in fleet.ready_urls() {
            while !http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                ensure!(began.elapsed() < Duration::from_secs(30), "not ready\n{}", fleet.tails());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        fleet.terminate().await?;
    }
    let mut findings = Findings::default();
    let (least, most) = spread(&times).unwrap_or_default();
    findings.figure("ms until ready", median(&times).unwrap_or_default());
    findings.figure("ms until ready, least", least);
    findings.figure("ms until ready, most", most);
    Ok(findings)
}
