//! The scenarios, one module each.
//!
//! A scenario prepares the system, makes one measurement and returns the results. It judges nothing and knows nothing
//! of the report.

mod cost;
mod hot;
mod hot_task;
mod kill;
mod latency;
mod ledger_size;
mod limit;
mod malformed;
mod nolimit;
mod start;

use crate::course::Seen;
use crate::fleet::{REPLICA, Setup};
use crate::measurement::{Findings, Job, Knobs, Scenario};
use crate::meter::Meter;
use crate::stage::Stage;
use crate::stats::{count, rate_within, ratio};

/// Makes one measurement.
pub(crate) async fn measure(job: &Job) -> anyhow::Result<Findings> {
    match job.scenario {
        Scenario::Limit => limit::measure(job.system, &job.knobs).await,
        Scenario::Nolimit => nolimit::measure(job.system, &job.knobs).await,
        Scenario::Latency => latency::measure(job.system, &job.knobs).await,
        Scenario::Cost => cost::measure(job.system, &job.knobs).await,
        Scenario::Hot => hot::measure(job.system, &job.knobs).await,
        Scenario::Kill => kill::measure(job.system, &job.knobs).await,
        Scenario::Malformed => malformed::measure(job.system, &job.knobs).await,
        Scenario::Start => start::measure(job.system, &job.knobs).await,
        Scenario::LedgerSize => ledger_size::measure(job.system, &job.knobs).await,
        Scenario::HotTask => hot_task::measure(job.system, &job.knobs).await,
    }
}

fn setup(limited: bool, knobs: &Knobs) -> Setup {
    Setup { limited, env: knobs.set.clone() }
}

/// Adds the rates at which a load landed.
fn rates(findings: &mut Findings, seen: &Seen) {
    let last = seen.landed.last().map_or(0.0, |point| point[1]);
    findings.figure("events/s", ratio(last, seen.seconds));
    // A longer load would also have start and end only once, so they are left out.
    findings.figure("events/s, middle", rate_within(&seen.landed, 0.1, 0.9).unwrap_or_default());
    findings.figure("seconds", seen.seconds);
    let points = thinned(&seen.landed, 300);
    findings.series.insert("landed".to_owned(), points);
    for (replica, memory) in &seen.memory {
        findings.series.insert(format!("memory of replica {replica}"), thinned(memory, 300));
    }
}

/// Adds the resources that the load used.
fn spent(findings: &mut Findings, meter: &Meter, stage: &Stage, events: f64) {
    for (role, seconds) in meter.cpu() {
        findings.figure(&format!("CPU seconds, {role}"), seconds);
    }
    let per_event = ratio(meter.cpu_of(REPLICA), events);
    findings.figure("CPU seconds per 100,000 events", per_event * 100_000.0);
    findings.figure("peak memory of a replica, MB", meter.peak_of(REPLICA));
    let seen = stage.kv.seen();
    findings.figure("requests", count(seen.total_requests()));
    findings.figure("requests per event", ratio(count(seen.total_requests()), events));
}

/// Returns about this many of the points, evenly spaced, with the last one.
fn thinned(points: &[[f64; 2]], most: usize) -> Vec<[f64; 2]> {
    let step = points.len().div_ceil(most).max(1);
    let mut thinned: Vec<_> = points.iter().step_by(step).copied().collect();
    if let Some(last) = points.last()
        && thinned.last() != Some(last)
    {
        thinned.push(*last);
    }
    thinned
}
