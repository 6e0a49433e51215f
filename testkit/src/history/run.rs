//! Runs one history from its plan to its verdict.
//!
//! This module has the order of the steps; `stage` has their parts.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use taskpipeline_contract::{EventKind, Task};
use taskpipeline_simulator::{Fault, Rule, Simulator};
use tokio::time::{Instant, sleep, timeout};

use super::capture::Captured;
use super::check::{self, Difference, Found};
use super::events::Burst;
use super::events::{Publication, seeded_value};
use super::hostile::{OVERSIZED_PAYLOAD, is_forged};
use super::letters::letters;
use super::moment::Servers;
use super::plan::{Plan, Quiet, Shape};
use super::replay::{decoded, kind_of, replay};
use super::settle::{DEAD_LETTERS, Glance, settled};
use super::stage::Stage;
use crate::{created, output_dir};

/// The time limit for everything to settle when the faults have ended.
const REST: Duration = Duration::from_secs(90);

/// The interval at which another task accompanies those that KV refuses.
const COMPANY: Duration = Duration::from_secs(5);

/// The time limit of a history.
const WHOLE: Duration = Duration::from_secs(300);

/// How long KV is down in an outage. Events live for eight seconds, and tombstones for a tenth longer.
const OUT_BEFORE_KILL: Duration = Duration::from_millis(10_500);
const OUT_AFTER_KILL: Duration = Duration::from_millis(1_500);

/// The result of a history.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed of the plan.
    pub seed: u64,
    /// Whether the history ran on three nats-servers.
    pub three_servers: bool,
    /// The number of events in the stream, by kind; `invalid` and `again` count as kinds.
    pub events: BTreeMap<&'static str, u64>,
    /// The number of faults that happened, by kind.
    pub fired: BTreeMap<String, u64>,
    /// The number of replicas that were started.
    pub replicas: u32,
    /// The number of requests to KV.
    pub requests: u64,
    /// The number of publishes that were repeated because they had no ack.
    pub repeated: u64,
    /// The time until everything was settled after the faults had ended.
    pub rest: Duration,
    /// The duration of the history.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: Vec<String>| counts.join(", ");
        let events = self.events.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let fired = self.fired.iter().filter(|(_, times)| **times > 0);
        let fired = fired.map(|(kind, times)| format!("{kind} {times}")).collect();
        write!(
            f,
            "history {}{}: {}; faults: {}; {} replicas, {} requests, {:.1} s, {:.1} s of it to come to rest",
            self.seed,
            if self.three_servers { " on three nats-servers" } else { "" },
            list(events),
            list(fired),
            self.replicas,
            self.requests,
            self.took.as_secs_f64(),
            self.rest.as_secs_f64()
        )
    }
}

/// Plays the history of this plan and checks its outcome.
///
/// # Errors
/// If something differs from the replay, does not settle, or fails. The error has the seed and the evidence, and the
/// path of the logs.
pub async fn run(plan: Plan) -> anyhow::Result<Report> {
    let seed = plan.seed;
    let stage = Stage::open(plan).await.with_context(|| format!("history {seed} does not start"))?;
    let played = timeout(WHOLE, stage.play()).await;
    let played = played.unwrap_or_else(|_| Err(anyhow!("the history did not end within {WHOLE:?}")));
    let report = stage.report().await;
    match played {
        Ok(()) => {
            // Keeps the evidence of a history that is only slow.
            if std::env::var_os("TASKPIPELINE_EVIDENCE").is_some() {
                stage.leave_evidence().await?;
            }
            Ok(report)
        }
        Err(error) => {
            let place = match stage.leave_evidence().await {
                Ok(place) => place.display().to_string(),
                Err(error) => format!("nowhere ({error:#})"),
            };
            Err(anyhow!("FAILED {report}\nevidence in {place}\n{error:#}"))
        }
    }
}

impl Stage {
    async fn play(&self) -> anyhow::Result<()> {
        match self.plan.shape {
            Shape::Mixed if self.plan.little_room => self.with_sweeps(self.mixed()).await?,
            Shape::Mixed => self.mixed().await?,
            Shape::Outage => self.with_sweeps(self.outage()).await?,
        }
        self.finish().await
    }

    async fn mixed(&self) -> anyhow::Result<()> {
        let kv_lane = async {
            self.kv_lane().await;
            Ok(())
        };
        let over = AtomicBool::new(false);
        let publish = async {
            let published = self.publish(&self.plan.bursts).await;
            over.store(true, Ordering::Relaxed);
            published
        };
        let (replicas, hostile) = (self.replica_lane(), self.hostile_lane(&over));
        tokio::try_join!(publish, replicas, self.nats_lane(), self.edit_lane(), kv_lane, hostile).map(drop)
    }

    async fn publish(&self, bursts: &[Burst]) -> anyhow::Result<()> {
        for Burst { publications, acked, pause } in bursts {
            {
                let _open = self.gate.read().await;
                if *acked {
                    self.producer.acked(publications).await?;
                } else {
                    self.producer.plain(publications).await?;
                }
            }
            sleep(*pause).await;
        }
        self.timeline.note("everything is published");
        Ok(())
    }

    /// KV goes down, tasks are deleted, and the replica that knows of the deletes dies when the events have expired.
    async fn outage(&self) -> anyhow::Result<()> {
        tokio::join!(self.publish(&self.plan.bursts), self.kv_lane()).0?;
        self.mend_kv();
        self.come_to_rest(1).await.context("before the outage")?;
        self.timeline.note("== outage");
        self.kv
            .set_faults(self.kv.faults().into_iter().chain([Rule::new(Fault::status(503)).named("outage")]));
        tokio::try_join!(self.publish(&self.plan.during_outage), async {
            sleep(OUT_BEFORE_KILL).await;
            let mut fleet = self.fleet.lock().await;
            let active = fleet.wait_active(Duration::from_secs(5)).await;
            fleet.kill(active.context("no active projector")?).await?;
            sleep(OUT_AFTER_KILL).await;
            fleet.fill_up(self.plan.replicas)
        })?;
        ensure!(self.befell("outage") > 0, "no request met the outage");
        self.count("kv outage past the events' age", 1);
        self.count("kill active projector", 1);
        self.kv.remove_faults("outage");
        self.timeline.note("== outage: over");
        Ok(())
    }

    /// Reads the stream repeatedly during the work: events expire, or are dropped to make room.
    async fn with_sweeps(&self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let over = AtomicBool::new(false);
        let sweeps = async {
            while !over.load(Ordering::Relaxed) {
                {
                    let mut capture = self.capture.lock().await;
                    capture.sweep(&self.jetstream).await?;
                    if self.plan.little_room {
                        capture.tell(&self.jetstream).await?;
                    }
                }
                sleep(Duration::from_millis(500)).await;
            }
            Ok(())
        };
        let work = async {
            let done = work.await;
            over.store(true, Ordering::Relaxed);
            done
        };
        tokio::try_join!(work, sweeps).map(drop)
    }

    /// Waits until everything is settled.
    ///
    /// While KV refuses some tasks, other tasks keep arriving: a refused task is at fault only if KV accepts another
    /// one beside it.
    async fn come_to_rest(&self, incarnation: u32) -> anyhow::Result<()> {
        if !self.kv.faults().iter().any(|rule| rule.name() == "kv poison") {
            return settled(&self.jetstream, &self.controls, incarnation, REST).await;
        }
        let deadline = Instant::now() + REST;
        for n in 0_u32.. {
            match settled(&self.jetstream, &self.controls, incarnation, COMPANY).await {
                Err(_) if Instant::now() < deadline => {}
                done => return done,
            }
            let payload = created(&format!("company-{n}")).to_string().into();
            self.producer.acked(&[Publication { kind: EventKind::Created, payload }]).await?;
        }
        Ok(())
    }

    /// Waits until everything is settled without faults, and checks the outcome.
    async fn finish(&self) -> anyhow::Result<()> {
        self.mend_kv();
        {
            let mut fleet = self.fleet.lock().await;
            fleet.fill_up(self.plan.replicas)?;
            fleet.all_run()?;
        }
        self.whole().await?;
        let mended = Instant::now();
        // The events that are published in here need room as well, and in an outage they expire after eight seconds.
        if self.plan.little_room || self.plan.shape == Shape::Outage {
            self.with_sweeps(self.calm_down()).await?;
        } else {
            self.calm_down().await?;
        }
        let mut capture = self.capture.lock().await;
        *self.rest.lock().await = mended.elapsed();
        self.timeline.note("at rest");
        self.fleet.lock().await.all_run()?;
        self.beside.lock().await.all_run()?;
        capture.sweep(&self.jetstream).await?;
        capture.verify(&self.jetstream).await?;
        let last = Glance::take(&self.jetstream).await?.stream_last;
        let promised = self.producer.stored_up_to();
        ensure!(last >= promised, "nats-server acked message {promised} and holds only {last}");
        self.count_kv_faults();
        self.count_shortages().await?;
        let unreadable = capture.events().iter().filter(|event| event.unreadable).count();
        self.count("unreadable headers", unreadable as u64);
        let oversized =
            capture.events().iter().filter(|event| event.payload.len() == OVERSIZED_PAYLOAD).count();
        self.count("oversized letters", oversized as u64);
        self.count("forged replies", capture.events().iter().filter(|event| is_forged(event)).count() as u64);

        let differences = self.differences(capture.events()).await?;
        if differences.is_empty() {
            return Ok(());
        }
        // A second look tells a late task from a lost one.
        sleep(Duration::from_secs(6)).await;
        let later = self.differences(capture.events()).await?;
        bail!(
            "{} differences, {} of them still there 6 s later:\n{}",
            differences.len(),
            later.iter().filter(|difference| differences.contains(difference)).count(),
            told(&differences, capture.events())
        )
    }

    /// Waits until nothing is left to do, after the part without faults if the plan has one.
    async fn calm_down(&self) -> anyhow::Result<()> {
        let incarnation = self.capture.lock().await.incarnation();
        if self.plan.quiet != Quiet::default() {
            // After an answer of KV, the projector may pause its requests for a while.
            self.come_to_rest(incarnation).await.context("before it is quiet")?;
            self.quiet().await?;
        }
        self.capture.lock().await.sweep(&self.jetstream).await?;
        self.come_to_rest(incarnation).await
    }

    async fn differences(&self, events: &[Captured]) -> anyhow::Result<Vec<Difference>> {
        let before = self.plan.seeded.iter().map(|id| serde_json::from_value::<Task>(seeded_value(id)));
        let expected = replay(before.collect::<Result<Vec<_>, _>>()?, events);
        let mut differences = check::tasks(&expected, &found(&self.kv));
        if self.plan.second.is_some() {
            differences.extend(check::tasks_in_second(&expected, &found(&self.second)));
        }
        let logs = self.logs().await;
        differences.extend(check::contention(logs.iter().flat_map(|(_, lines)| lines)));
        let letters = letters(&self.jetstream, DEAD_LETTERS).await.context("cannot read the dead letters")?;
        differences.extend(check::letters(&expected, events, &letters));
        Ok(differences)
    }

    /// Waits until no server is down or behind.
    async fn whole(&self) -> anyhow::Result<()> {
        match self.nats.lock().await.cluster() {
            Some(cluster) => cluster.whole().await,
            None => Ok(()),
        }
    }

    /// The output of all replicas.
    async fn logs(&self) -> Vec<(String, Vec<String>)> {
        let (fleet, beside) = (self.fleet.lock().await, self.beside.lock().await);
        fleet.logs().into_iter().chain(beside.logs()).collect()
    }

    async fn report(&self) -> Report {
        let mut events = BTreeMap::new();
        let mut known = HashSet::new();
        let capture = self.capture.lock().await;
        for captured in capture.events() {
            let kind = match decoded(captured).map(|event| event.kind()) {
                _ if !known.insert((&captured.subject, &captured.payload)) => "again",
                Some(EventKind::Created) => "created",
                Some(EventKind::Updated) => "updated",
                Some(EventKind::Deleted) => "deleted",
                None => "invalid",
            };
            *events.entry(kind).or_default() += 1;
        }
        let mut fired = self.fired();
        fired.insert("duplicates".to_owned(), events.get("again").copied().unwrap_or_default());
        Report {
            seed: self.plan.seed,
            three_servers: self.plan.servers == Servers::Three,
            events,
            fired,
            replicas: self.fleet.lock().await.started() + self.beside.lock().await.started(),
            requests: self.kv.seen().total_requests(),
            repeated: self.producer.repeated(),
            rest: *self.rest.lock().await,
            took: self.timeline.start().elapsed(),
        }
    }

    /// Writes the evidence that a person needs to find the cause.
    async fn leave_evidence(&self) -> anyhow::Result<PathBuf> {
        let place = output_dir()?.join(format!("history-{}", self.plan.seed));
        // The files of an earlier run of the same seed would only confuse.
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join("timeline"), self.timeline.text())?;
        for (name, lines) in self.logs().await {
            std::fs::write(place.join(format!("{name}.log")), lines.join("\n"))?;
        }
        for (n, tail) in self.nats.lock().await.tails().iter().enumerate() {
            std::fs::write(place.join(format!("nats-server-{n}.log")), tail)?;
        }
        let mut requests = String::new();
        for request in self.kv.requests() {
            writeln!(requests, "{request:?}")?;
        }
        std::fs::write(place.join("requests"), requests)?;
        let mut events = String::new();
        for event in self.capture.lock().await.events() {
            writeln!(events, "{} {}", line(event), String::from_utf8_lossy(&event.payload))?;
        }
        std::fs::write(place.join("events"), events)?;
        let mut told = String::new();
        for letter in letters(&self.jetstream, DEAD_LETTERS).await? {
            writeln!(told, "{letter:?}")?;
        }
        std::fs::write(place.join("dead-letters"), told)?;
        Ok(place)
    }
}

/// The content of a namespace.
fn found(kv: &Simulator) -> BTreeMap<String, Found> {
    let found = |key: String| {
        let stored = kv.get(&key)?;
        Some((key, Found { value: stored.value, metadata: stored.metadata }))
    };
    kv.keys().into_iter().filter_map(found).collect()
}

/// Formats the first differences, each with the latest events of its task.
fn told(differences: &[Difference], events: &[Captured]) -> String {
    const SHOWN: usize = 20;
    let mut text = String::new();
    for difference in differences.iter().take(SHOWN) {
        let _ = writeln!(text, "{difference}");
        let Some(id) = difference.task_id() else { continue };
        let about = |event: &&Captured| decoded(event).is_some_and(|event| event.task_id().as_str() == id);
        let about: Vec<_> = events.iter().filter(about).map(line).collect();
        let from = about.len().saturating_sub(8);
        let _ = writeln!(text, "  {} events, at last: {}", about.len(), about[from..].join(", "));
    }
    let more = differences.len().saturating_sub(SHOWN);
    if more > 0 {
        let _ = writeln!(text, "... and {more} more");
    }
    text
}

fn line(event: &Captured) -> String {
    let kind = kind_of(&event.subject).map_or("?", EventKind::as_str);
    format!("{}-{} {kind} {}", event.incarnation, event.sequence, event.at())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_with_the_events_of_its_task() {
        let event = |sequence, id: &str| Captured {
            incarnation: 2,
            sequence,
            nanos: 0,
            subject: "tasks.deleted".to_owned(),
            unreadable: false,
            payload: format!(r#"{{"correlationId": "c", "data": {{"id": "{id}"}}}}"#).into(),
        };
        let difference = Difference::Extra { key: "tasks:a".to_owned(), found: "x".to_owned() };
        let text = told(&[difference], &[event(4, "a"), event(5, "b")]);
        assert!(text.contains("1 events, at last: 2-4 deleted 1970"), "{text}");
    }
}
