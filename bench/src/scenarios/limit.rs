//! Events landed per second under Cloudflare's limit on requests, for any time, with live publishers that keep a backlog.
//!
//! The events are creates of distinct tasks, or a tenth of them deletes. The replica that writes may be killed in the middle.

use std::time::Duration;

use taskpipeline_simulator::Latency;
use tokio::time::Instant;

use super::{rates, setup, spent};
use crate::course::{Course, Until};
use crate::events::{Mix, task_id};
use crate::fleet::{Fleet, OUR_REQUESTS, PEER_REQUESTS};
use crate::measurement::{Findings, Knobs};
use crate::meter::Meter;
use crate::stage::Stage;
use crate::stats::{count, rate_between, ratio};
use crate::system::{Kind, System};

/// How long nothing may land after the end before missing events count as missing. NATS delivers events that a killed
/// replica had in flight again after 30 s. Tasks in doubt are written again after as long.
const PATIENCE: Duration = Duration::from_secs(40);
/// The limit of the wait. After a fail-over, the budget may still have many tasks to write twice.
const LONGEST: Duration = Duration::from_secs(300);

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let setup = setup(true, knobs);
    let time = knobs.time_or(Duration::from_secs(180));
    let usual = match system.kind {
        Kind::Durable | Kind::Floor | Kind::GuardedFloor => 100_000,
        Kind::Core => 50_000,
        // The peer lands four events a second, and keeps waiting ones in memory.
        Kind::Peer | Kind::PeerFloor => 40,
    };
    let backlog = if knobs.backlog == 0 { usual } else { knobs.backlog };
    let delete_lag = if knobs.deletes { 3 * backlog } else { 0 };
    let mix = Mix { delete_lag, ..Mix::creates(knobs.ids) };
    let stage = Stage::new(true, Latency::LIKELY).await?;
    let mut fleet = Fleet::start(system, &setup, &stage).await?;
    let mut meter = Meter::default();
    stage.watch(&mut meter)?;
    fleet.watch(&mut meter, false);
    let mut course = Course::live(&stage, &mut meter, mix, system.kind.has_stream(), backlog)?;
    let kill_at = knobs.failover.then_some(time / 2);
    let seen = course.run(Some(&mut fleet), Until::Time(time), kill_at).await?;
    let during = stage.kv.seen();
    // Tasks that were in doubt at a fail-over are written twice, and the second write is not a landed event. Then the
    // content of KV is counted, and the time of that counts as well.
    let ended = Instant::now();
    let counted = (knobs.failover && !knobs.deletes).then(|| by_contents(&stage, mix));
    let until = seen.seconds + counted.map_or(0.0, |_| ended.elapsed().as_secs_f64());
    let (published, landed) = course.drain(PATIENCE).await?;
    if knobs.failover {
        stage.quiet(PATIENCE, LONGEST).await;
    }
    let written = stage.landed();
    let landed = if counted.is_some() { by_contents(&stage, mix) } else { landed };
    let mut findings = Findings::default();
    if knobs.failover {
        findings.note("the figures by minute count keys, including those that are written twice");
    }
    rates(&mut findings, &seen);
    let last = counted.unwrap_or_else(|| seen.landed.last().map_or(0.0, |point| point[1]));
    findings.figure("events/s", ratio(last, until));
    // The bucket is full at the start, so the second half shows the lasting rate. Until the fail-over no task is written twice.
    let half = seen.seconds / 2.0;
    let at_half = seen.landed.iter().find(|point| point[0] >= half).map_or(0.0, |point| point[1]);
    let second_half = ratio((last - at_half).max(0.0), until - half);
    findings.figure("events/s, second half", second_half);
    let requests = rate_between(&seen.requests, half, seen.seconds).unwrap_or_default();
    findings.figure("requests/s, second half", requests);
    let lasting = if system.kind == Kind::Peer { PEER_REQUESTS } else { OUR_REQUESTS } / 300.0;
    // A short run still uses the full bucket in its second half.
    findings.figure("events/s that last", second_half * (lasting / requests.max(lasting)));
    spent(&mut findings, &meter, &stage, published.min(landed));
    let after = stage.kv.seen();
    findings.figure("429s", count(after.throttled));
    findings.figure("most requests in 5 minutes", stage.most_in_a_window());
    findings.figure(
        "keys per request",
        ratio(count(during.keys_put + during.keys_deleted), count(during.total_requests())),
    );
    findings.figure("events published", published);
    findings.figure("keys written", written);
    findings.figure("keys written twice", (written - landed).max(0.0));
    findings.figure("events not landed", (published - landed).max(0.0));
    findings.figure("written too soon", count(after.writes_too_soon));
    if !knobs.deletes {
        findings.figure("tasks that are not as their last event", count(wrong(&stage, mix, published)));
    }
    let minute = |number: u32| {
        let from = f64::from(number) * 60.0;
        let rate = rate_between(&seen.landed, from, (from + 60.0).min(seen.seconds))?;
        Some([f64::from(number + 1), rate])
    };
    let minutes = (0..1_000).take_while(|number| f64::from(*number) * 60.0 + 1.0 < seen.seconds);
    findings.series.insert("events/s by minute".to_owned(), minutes.filter_map(minute).collect());
    Ok(findings)
}

/// The number of landed events by the content of KV, for a load of creates only. The title of a task names the event
/// that set it, and so the number of earlier events about this task.
fn by_contents(stage: &Stage, mix: Mix) -> f64 {
    let landed = |task: u64| {
        let value = stage.kv.get(&format!("tasks:{}", task_id(task)))?.value;
        let (_, rest) = std::str::from_utf8(&value).ok()?.split_once("Task number ")?;
        let place: u64 = rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some(place / mix.ids + 1)
    };
    count((0..mix.ids).filter_map(landed).sum::<u64>())
}

/// The number of tasks whose value in KV differs from the last event about them.
fn wrong(stage: &Stage, mix: Mix, published: f64) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let published = published as u64;
    let is_wrong = |task: &u64| {
        let Some(place) = mix.last_create(*task, published) else { return true };
        let title = format!("Task number {place}");
        stage.task(&task_id(*task)).is_none_or(|task| task["title"] != title.as_str())
    };
    (0..mix.ids.min(published)).filter(is_wrong).count()
}
