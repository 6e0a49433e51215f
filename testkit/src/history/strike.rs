//! Carrying out the faults of a history. Each says whether it happened: one that did not is not counted.
//!
//! Three lanes run side by side (replicas, nats-server, KV), so that their faults meet; within a lane they
//! come one after another.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use taskpipeline_simulator::{Fault, Rule};
use tokio::time::{Instant, sleep, sleep_until};

use super::dice::Dice;
use super::events::Publication;
use super::fault::{LEASE, NatsFault, ReplicaFault};
use super::fleet::Fleet;
use super::plan::Strike;
use super::settle::{Glance, STREAM, consumed};
use super::stage::Stage;
use crate::eventually;

/// How long the replicas may take to take in what is in the stream, with messages in dead hands.
const TAKEN_IN: Duration = Duration::from_secs(40);

/// How long a crash point may wait to be passed.
const CRASH_WITHIN: Duration = Duration::from_secs(8);

/// `ACK_WAIT` and some more.
const PAST_ACK_WAIT: Duration = Duration::from_millis(4_500);

impl Stage {
    /// Everything that befalls the replicas.
    ///
    /// # Errors
    /// Where the replicas do what they must not, or the harness cannot do what it must.
    pub(crate) async fn replica_lane(&self) -> anyhow::Result<()> {
        let mut dice = Dice::new(self.plan.seed ^ 0x5eed);
        for Strike { at, fault } in &self.plan.replica_faults {
            sleep_until(self.timeline.start() + *at).await;
            let mut fleet = self.fleet.lock().await;
            fleet.all_run()?;
            self.timeline.note(format_args!("== {fault:?}"));
            let fired = self.strike_replicas(&mut fleet, fault, &mut dice).await;
            let fired = fired.with_context(|| format!("while: {}", fault.name()))?;
            self.timeline.note(format_args!(
                "== {}: {}",
                fault.name(),
                if fired { "done" } else { "NOT done" }
            ));
            self.count(&fault.name(), u64::from(fired));
            fleet.fill_up(self.plan.replicas)?;
        }
        Ok(())
    }

    async fn strike_replicas(
        &self,
        fleet: &mut Fleet,
        fault: &ReplicaFault,
        dice: &mut Dice,
    ) -> anyhow::Result<bool> {
        match fault {
            ReplicaFault::Kill { pause } => {
                fleet.kill(dice.index(fleet.count())).await?;
                sleep(*pause).await;
                Ok(true)
            }
            ReplicaFault::KillActive { pause } => {
                let Some(active) = fleet.wait_active(Duration::from_secs(5)).await else { return Ok(false) };
                fleet.kill(active).await?;
                sleep(*pause).await;
                Ok(true)
            }
            ReplicaFault::Stop { lasting } => {
                let which = dice.index(fleet.count());
                fleet.pause(which, true)?;
                sleep(*lasting).await;
                fleet.pause(which, false)?;
                Ok(true)
            }
            ReplicaFault::TwoProjectors { lasting } => two_projectors(fleet, *lasting).await,
            ReplicaFault::FormerProjectorWrites { nth, drained } => {
                self.former_projector_writes(fleet, *nth, *drained).await
            }
            ReplicaFault::LateWriteOutlives { after, drained } => {
                self.late_write_outlives(fleet, *after, *drained).await
            }
            ReplicaFault::Redelivery => self.redelivery(fleet).await,
            ReplicaFault::Scale => {
                fleet.drain((1..fleet.count()).collect()).await?;
                fleet.fill_up(4)?;
                sleep(Duration::from_millis(1_500)).await;
                let mut leaving: Vec<_> = (0..4).collect();
                dice.shuffle(&mut leaving);
                fleet.drain(leaving[..2].to_vec()).await?;
                Ok(true)
            }
            ReplicaFault::Crash { point, nth, alone } => fleet.crash(point, *nth, *alone, CRASH_WITHIN).await,
            ReplicaFault::Misconfigured { fault } => self.misconfigured(fleet, fault).await,
        }
    }

    /// Counted when it stood still before a request, and another was the active projector for a settle time.
    async fn former_projector_writes(
        &self,
        fleet: &mut Fleet,
        nth: u32,
        drained: bool,
    ) -> anyhow::Result<bool> {
        let Some(former) = fleet.stop_at("sending", nth, CRASH_WITHIN).await? else { return Ok(false) };
        fleet.fill_up(self.plan.replicas.max(2))?;
        let second = fleet.wait_active(LEASE + Duration::from_secs(4)).await;
        sleep(self.plan.settle_after + Duration::from_secs(1)).await;
        fleet.pause(former, false)?;
        if drained {
            fleet.drain(vec![former]).await?;
        } else {
            handed_over(fleet, former).await;
        }
        Ok(second.is_some())
    }

    /// Counted when a write was late and another replica has become the active projector before it landed.
    async fn late_write_outlives(
        &self,
        fleet: &mut Fleet,
        after: Duration,
        drained: bool,
    ) -> anyhow::Result<bool> {
        const NAME: &str = "late write outlives";
        fleet.fill_up(2)?;
        let Some(first) = fleet.wait_active(Duration::from_secs(5)).await else { return Ok(false) };
        let before = self.befell(NAME);
        self.kv.inject(Rule::new(Fault::Late { after, status: None }).times(2).named(NAME));
        let befell = self.wait_befell(NAME, before).await;
        let landing = Instant::now() + after;
        if drained {
            fleet.drain(vec![first]).await?;
        } else {
            fleet.kill(first).await?;
        }
        self.kv.mend(NAME);
        let second = fleet.wait_active(after).await;
        let in_time = befell && second.is_some() && Instant::now() < landing;
        sleep_until(landing).await;
        Ok(in_time)
    }

    /// Waits until the rule has befallen one more request, though not for long.
    async fn wait_befell(&self, rule: &str, before: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.befell(rule) == before && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        self.befell(rule) > before
    }

    /// Counted when the consumer has delivered messages again.
    async fn redelivery(&self, fleet: &mut Fleet) -> anyhow::Result<bool> {
        fleet.fill_up(2)?;
        let active = fleet.active().await;
        let other = (0..fleet.count()).find(|index| Some(*index) != active).unwrap_or(0);
        let patience = Duration::from_secs(10);
        let before = eventually(patience, || Glance::take(&self.jetstream)).await?;
        fleet.pause(other, true)?;
        sleep(PAST_ACK_WAIT).await;
        fleet.pause(other, false)?;
        let after = eventually(patience, || Glance::take(&self.jetstream)).await?;
        Ok(before.incarnation == after.incarnation && after.repeats() > before.repeats())
    }

    /// Counted when KV has refused a request this way.
    async fn misconfigured(&self, fleet: &mut Fleet, fault: &Fault) -> anyhow::Result<bool> {
        let name = format!("kv {}", fault.name());
        let before = self.befell(&name);
        self.kv.inject(Rule::new(fault.clone()).named(&name));
        let befell = self.wait_befell(&name, before).await;
        sleep(Duration::from_millis(300)).await;
        self.kv.mend(&name);
        // It would ask again only half a minute later. Where nobody says it is the one, they all go.
        match fleet.wait_active(Duration::from_secs(2)).await {
            Some(active) => fleet.kill(active).await?,
            None => {
                while fleet.count() > 0 {
                    fleet.kill(0).await?;
                }
            }
        }
        Ok(befell)
    }

    /// Everything that befalls nats-server.
    ///
    /// # Errors
    /// As [`Self::replica_lane`].
    pub(crate) async fn nats_lane(&self) -> anyhow::Result<()> {
        for Strike { at, fault } in &self.plan.nats_faults {
            sleep_until(self.timeline.start() + *at).await;
            self.timeline.note(format_args!("== {}", fault.name()));
            let struck = match fault {
                NatsFault::Kill { down } => self.kill_nats(*down).await,
                NatsFault::Stop { lasting } => self.stop_nats(*lasting).await,
                NatsFault::Recreated { by_harness } => self.recreate_stream(*by_harness).await,
                NatsFault::TailLost { tail, kill_replica } => self.lose_tail(tail, *kill_replica).await,
            };
            struck.with_context(|| format!("while: {}", fault.name()))?;
            self.timeline.note(format_args!("== {}: done", fault.name()));
            self.count(fault.name(), 1);
        }
        Ok(())
    }

    async fn kill_nats(&self, down: Duration) -> anyhow::Result<()> {
        let mut nats = self.nats.lock().await;
        nats.kill().await?;
        sleep(down).await;
        nats.restart().await
    }

    async fn stop_nats(&self, lasting: Duration) -> anyhow::Result<()> {
        let nats = self.nats.lock().await;
        nats.pause(true)?;
        sleep(lasting).await;
        nats.pause(false)
    }

    async fn recreate_stream(&self, by_harness: bool) -> anyhow::Result<()> {
        let fleet = self.fleet.lock().await;
        let silence = self.gate.write().await;
        let mut capture = self.capture.lock().await;
        self.all_taken_in(capture.incarnation()).await?;
        capture.sweep(&self.jetstream).await?;
        let config = self.jetstream.get_stream(STREAM).await?.cached_info().config.clone();
        self.jetstream.delete_stream(STREAM).await?;
        self.timeline.note(format_args!("deleted the stream; made again by the harness: {by_harness}"));
        capture.begin_incarnation(1);
        self.producer.forget_promises();
        if by_harness {
            // A replica may have been faster.
            self.jetstream.get_or_create_stream(config).await?;
        }
        drop((capture, silence, fleet));
        Ok(())
    }

    async fn lose_tail(&self, tail: &[Publication], kill_replica: bool) -> anyhow::Result<()> {
        let mut fleet = self.fleet.lock().await;
        let silence = self.gate.write().await;
        let mut capture = self.capture.lock().await;
        self.all_taken_in(capture.incarnation()).await?;
        let last = Glance::take(&self.jetstream).await?.stream_last;
        let copies = tempfile::TempDir::new()?;
        let copy = copies.path().join("copy");
        let mut nats = self.nats.lock().await;
        nats.stop().await?;
        copy_dir(&nats.stream_dir(STREAM), &copy)?;
        nats.restart().await?;

        self.producer.acked(tail).await?;
        self.all_taken_in(capture.incarnation()).await?;
        capture.sweep(&self.jetstream).await?;
        let lost = Glance::take(&self.jetstream).await?.stream_last - last;
        ensure!(lost > 0, "the tail is empty");
        nats.stop().await?;
        std::fs::remove_dir_all(nats.stream_dir(STREAM))?;
        copy_dir(&copy, &nats.stream_dir(STREAM))?;
        if kill_replica {
            fleet.kill(0).await?;
        }
        nats.restart().await?;
        self.timeline.note(format_args!("the stream lost {lost} messages after {last}"));
        capture.begin_incarnation(last + 1);
        self.producer.forget_promises();
        fleet.fill_up(self.plan.replicas)?;
        drop((nats, capture, silence, fleet));
        Ok(())
    }

    async fn all_taken_in(&self, incarnation: u32) -> anyhow::Result<()> {
        consumed(&self.jetstream, incarnation, TAKEN_IN).await
    }

    /// Everything that befalls requests to KV; counted at the end, by [`Self::count_kv_faults`].
    pub(crate) async fn kv_lane(&self) {
        for Strike { at, fault } in &self.plan.kv_faults {
            sleep_until(self.timeline.start() + *at).await;
            self.timeline.note(format_args!("== {fault:?}"));
            self.kv.inject(fault.clone());
        }
    }

    /// Ends what befalls requests to KV. What it refuses it goes on refusing, as it would.
    pub(crate) fn mend_kv(&self) {
        for rule in self.kv.faults().iter().filter(|rule| rule.name() != "kv poison") {
            self.kv.mend(rule.name());
        }
        self.timeline.note("KV is mended");
    }

    /// Counts what did befall a request.
    pub(crate) fn count_kv_faults(&self) {
        for strike in &self.plan.kv_faults {
            let name = strike.fault.name();
            self.count(name, u64::from(self.befell(name) > 0));
        }
    }
}

/// Counted when another has become the active projector while the one that was stands still.
async fn two_projectors(fleet: &mut Fleet, lasting: Duration) -> anyhow::Result<bool> {
    fleet.fill_up(2)?;
    let Some(first) = fleet.wait_active(Duration::from_secs(5)).await else { return Ok(false) };
    fleet.pause(first, true)?;
    let until = Instant::now() + lasting;
    let second = fleet.wait_active(lasting).await;
    sleep_until(until).await;
    fleet.pause(first, false)?;
    handed_over(fleet, first).await;
    Ok(second.is_some())
}

/// Waits until a former projector knows that it is one, and has had the time to hand over what it was about to
/// write. It may not be killed before: what it sent when it went on is nobody's then.
async fn handed_over(fleet: &Fleet, former: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    // Right after SIGCONT it has not even looked.
    sleep(Duration::from_millis(1_000)).await;
    while fleet.all_active().await.contains(&former) && Instant::now() < deadline {
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_millis(500)).await;
}

fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
