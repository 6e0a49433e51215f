//! Events landed per second under Cloudflare's limit on requests, for as long as one likes, with live publishers that
//! keep a backlog: creates of distinct tasks, or a tenth of them deletes. The replica that writes may be killed in the
//! middle.

use std::time::Duration;

use taskpipeline_simulator::Latency;

use super::{rates, setup, spent};
use crate::course::{Course, Until};
use crate::events::{Mix, task_id};
use crate::fleet::Fleet;
use crate::measurement::{Findings, Knobs};
use crate::meter::Meter;
use crate::stage::Stage;
use crate::stats::{count, rate_between, ratio};
use crate::system::{Kind, System};

/// How long nothing may land after the end before what is missing counts as missing. What a killed replica had in
/// hand is delivered again after 30 s, and what was in doubt is written again after as long.
const PATIENCE: Duration = Duration::from_secs(40);

/// Measures it once.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let setup = setup(true, knobs);
    let time = knobs.time_or(Duration::from_secs(180));
    let usual = match system.kind {
        Kind::Durable | Kind::Floor => 100_000,
        Kind::Core => 50_000,
        // It lands four a second; what waits is in its memory.
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
    let (published, landed) = course.drain(PATIENCE).await?;
    if knobs.failover {
        stage.quiet(PATIENCE, 3 * PATIENCE).await;
    }
    // After a fail-over, what was in doubt was written twice. That is no event landed: it is taken off below,
    // from whichever part of the run is looked at; in a short run it comes after the end.
    let written = stage.landed();
    let twice = (written - published).max(0.0);
    let within = if time / 2 > PATIENCE { twice } else { 0.0 };
    let mut findings = Findings::default();
    rates(&mut findings, &seen);
    let last = seen.landed.last().map_or(0.0, |point| point[1]);
    findings.figure("events/s", ratio((last - within).max(0.0), seen.seconds));
    // The bucket is full when it starts: the second half shows what lasts.
    let half = seen.seconds / 2.0;
    let second_half = rate_between(&seen.landed, half, seen.seconds).unwrap_or_default();
    findings.figure("events/s, second half", (second_half - ratio(within, half)).max(0.0));
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
    findings.figure("keys written twice", twice);
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

/// How many tasks KV does not hold as the last event about them says.
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
