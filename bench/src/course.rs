//! The course of a load: live publishers keep a backlog in front of the system, and everything is sampled every tenth
//! of a second.
//!
//! The scenarios interpret the samples.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::events::Mix;
use crate::fleet::{Fleet, REPLICA};
use crate::meter::Meter;
use crate::publisher::{Options, Publisher};
use crate::stage::{PUBLISHER, Stage};
use crate::stats::count;

/// The interval between two counts of landed events.
const TICK: Duration = Duration::from_millis(100);
/// The interval between two samples of CPU time and memory, in ticks.
const TICKS_PER_METER: u32 = 10;
/// How long nothing may land before a course toward a count is given up.
const STANDSTILL: Duration = Duration::from_secs(90);

/// The end of a course.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// This many events have landed.
    Landed(u64),
    /// This much time has passed.
    Time(Duration),
}

/// The samples of a course.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The number of landed events after this many seconds.
    pub(crate) landed: Vec<[f64; 2]>,
    /// The number of accepted requests after this many seconds.
    pub(crate) requests: Vec<[f64; 2]>,
    /// The memory of each replica after this many seconds, in MB; a new replica begins a new series.
    pub(crate) memory: BTreeMap<String, Vec<[f64; 2]>>,
    /// The time from the first event to the end, in seconds.
    pub(crate) seconds: f64,
}

/// A load on its way to a system.
#[derive(Debug)]
pub(crate) struct Course<'a> {
    stage: &'a Stage,
    meter: &'a mut Meter,
    publisher: Option<Publisher>,
    backlog: u64,
    /// The number of events that had landed before the clock started.
    before: f64,
}

impl<'a> Course<'a> {
    /// A course whose events are already stored.
    pub(crate) fn stored(stage: &'a Stage, meter: &'a mut Meter) -> Self {
        Self { stage, meter, publisher: None, backlog: 0, before: stage.landed() }
    }

    /// A course with a live publisher that keeps this many events in front of the system.
    pub(crate) fn live(
        stage: &'a Stage,
        meter: &'a mut Meter,
        mix: Mix,
        acked: bool,
        backlog: u64,
    ) -> anyhow::Result<Self> {
        let publisher = Publisher::start(&Options::new(&stage.nats.url(), mix, acked))?;
        meter.watch(PUBLISHER, publisher.pid()?);
        Ok(Self { stage, meter, publisher: Some(publisher), backlog, before: stage.landed() })
    }

    /// Runs the course. At `kill_at`, it kills the replica that writes to KV, and starts another.
    pub(crate) async fn run(
        &mut self,
        fleet: Option<&mut Fleet>,
        until: Until,
        kill_at: Option<Duration>,
    ) -> anyhow::Result<Seen> {
        let mut fleet = fleet;
        let mut kill_at = kill_at;
        let (began, mut seen, mut ticks) = (Instant::now(), Seen::default(), 0_u32);
        let mut moved = (began, 0.0);
        let mut clock = interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            clock.tick().await;
            let landed = self.stage.landed() - self.before;
            let now = began.elapsed();
            seen.landed.push([now.as_secs_f64(), landed]);
            seen.requests.push([now.as_secs_f64(), count(self.stage.kv.seen().total_requests())]);
            if landed > moved.1 {
                moved = (Instant::now(), landed);
            }
            if ticks.is_multiple_of(TICKS_PER_METER) {
                self.meter.look();
                for (name, resident) in self.meter.resident_by_name(REPLICA) {
                    seen.memory.entry(name).or_default().push([now.as_secs_f64(), resident]);
                }
            }
            ticks += 1;
            let over = match until {
                Until::Landed(events) => landed >= count(events),
                Until::Time(time) => now >= time,
            };
            if over {
                break;
            }
            if let Until::Landed(events) = until {
                let tails = || fleet.as_ref().map(|fleet| fleet.tails()).unwrap_or_default();
                ensure!(
                    moved.0.elapsed() < STANDSTILL,
                    "{landed} of {events} events have landed, and none for {STANDSTILL:?}\n{}",
                    tails()
                );
            }
            if let Some(fleet) = fleet.as_deref_mut()
                && kill_at.take_if(|at| now >= *at).is_some()
            {
                let active = fleet.active().await;
                fleet.kill(active).await?;
                fleet.add(self.meter).await?;
            }
            self.allow(landed, until).await?;
        }
        self.meter.look();
        seen.seconds = began.elapsed().as_secs_f64();
        Ok(seen)
    }

    async fn allow(&mut self, landed: f64, until: Until) -> anyhow::Result<()> {
        let Some(publisher) = &mut self.publisher else { return Ok(()) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let most = landed as u64 + self.backlog;
        publisher.allow(if let Until::Landed(events) = until { most.min(events) } else { most }).await
    }

    /// Lets the publisher end, and waits until all its events have landed, or nothing has for `patience`. Returns the
    /// numbers of published and landed events.
    pub(crate) async fn drain(mut self, patience: Duration) -> anyhow::Result<(f64, f64)> {
        let Some(mut publisher) = self.publisher.take() else { return Ok((0.0, 0.0)) };
        publisher.finish().await?;
        let published = count(publisher.published());
        let (mut landed, mut moved) = (0.0, Instant::now());
        loop {
            let now = self.stage.landed() - self.before;
            if now > landed {
                (landed, moved) = (now, Instant::now());
            }
            if landed >= published || moved.elapsed() >= patience {
                self.meter.look();
                return Ok((published, landed));
            }
            tokio::time::sleep(TICK).await;
        }
    }
}
