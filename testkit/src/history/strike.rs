//! Carries out the faults of a history. Each returns whether it happened; otherwise it is not counted.
//!
//! Lanes run side by side (replicas, nats-servers, KV, edits of the settings), so that their faults meet. The faults
//! of one lane follow each other.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context;
use taskpipeline_simulator::{Fault, Rule, Simulator};
use tokio::time::{Instant, sleep, sleep_until};

use super::dice::Dice;
use super::fault::{LEASE, ReplicaFault};
use super::fleet::Fleet;
use super::moment::Strike;
use super::settle::Glance;
use super::stage::Stage;
use crate::eventually;

/// The time limit for a crash point to be passed.
const CRASH_WITHIN: Duration = Duration::from_secs(8);

/// `ACK_WAIT` and some more.
pub(crate) const PAST_ACK_WAIT: Duration = Duration::from_millis(4_500);

impl Stage {
    /// Carries out all faults of the replicas.
    ///
    /// # Errors
    /// If the replicas violate a guarantee, or the harness cannot carry out a fault.
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
            ReplicaFault::Moved { lasting } => self.moved(fleet, *lasting).await,
            ReplicaFault::Crash { point, nth, alone } => fleet.crash(point, *nth, *alone, CRASH_WITHIN).await,
            ReplicaFault::Misconfigured { fault } => self.misconfigured(fleet, fault).await,
        }
    }

    /// Counts if the projector stopped before a request, and another was active for a settle time.
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

    /// Counts if a write was late, and another replica became the active projector before it landed.
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
        self.kv.remove_faults(NAME);
        let second = fleet.wait_active(after).await;
        let in_time = befell && second.is_some() && Instant::now() < landing;
        sleep_until(landing).await;
        Ok(in_time)
    }

    /// Waits for a short time until the rule has met one more request.
    async fn wait_befell(&self, rule: &str, before: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.befell(rule) == before && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        self.befell(rule) > before
    }

    /// Counts if the consumer has delivered messages again.
    async fn redelivery(&self, fleet: &mut Fleet) -> anyhow::Result<bool> {
        fleet.fill_up(2)?;
        let active = fleet.active().await;
        let other = (0..fleet.count()).find(|index| Some(*index) != active).unwrap_or(0);
        let patience = Duration::from_secs(30);
        let before = eventually(patience, || Glance::take(&self.jetstream)).await?;
        fleet.pause(other, true)?;
        sleep(PAST_ACK_WAIT).await;
        fleet.pause(other, false)?;
        let after = eventually(patience, || Glance::take(&self.jetstream)).await?;
        Ok(before.incarnation == after.incarnation && after.repeats() > before.repeats())
    }

    /// Counts if the other namespace was written.
    async fn moved(&self, fleet: &mut Fleet, lasting: Duration) -> anyhow::Result<bool> {
        let before = self.second.seen().keys_put;
        fleet.drain((0..fleet.count()).collect()).await?;
        fleet.serve(self.to_second.clone());
        fleet.fill_up(self.plan.replicas)?;
        sleep(lasting).await;
        fleet.drain((0..fleet.count()).collect()).await?;
        fleet.serve(self.to_first.clone());
        Ok(self.second.seen().keys_put > before)
    }

    /// Counts if KV has refused a request in this way.
    async fn misconfigured(&self, fleet: &mut Fleet, fault: &Fault) -> anyhow::Result<bool> {
        let name = format!("kv {}", fault.name());
        let before = self.befell(&name);
        self.kv.inject(Rule::new(fault.clone()).named(&name));
        let befell = self.wait_befell(&name, before).await;
        sleep(Duration::from_millis(300)).await;
        self.kv.remove_faults(&name);
        // The projector would try again only half a minute later. If no replica reports to be active, all are killed.
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

    /// Carries out all faults of requests to KV. [`Self::count_kv_faults`] counts them at the end.
    pub(crate) async fn kv_lane(&self) {
        let second = self.plan.second.as_deref().unwrap_or_default();
        tokio::join!(self.inject(&self.kv, &self.plan.kv_faults), self.inject(&self.second, second));
    }

    async fn inject(&self, kv: &Simulator, rules: &[Strike<Rule>]) {
        for Strike { at, fault } in rules {
            sleep_until(self.timeline.start() + *at).await;
            self.timeline.note(format_args!("== {fault:?} ({})", kv.config().namespace));
            kv.inject(fault.clone());
        }
    }

    /// Ends the faults of requests to KV, except the refusals of single tasks, which would last in practice, too.
    pub(crate) fn mend_kv(&self) {
        for rule in self.kv.faults().iter().filter(|rule| rule.name() != "kv poison") {
            self.kv.remove_faults(rule.name());
        }
        self.second.set_faults([]);
        self.timeline.note("the faults of KV have ended");
    }

    /// Counts the faults that met a request.
    pub(crate) fn count_kv_faults(&self) {
        for strike in &self.plan.kv_faults {
            let name = strike.fault.name();
            self.count(name, u64::from(self.befell(name) > 0));
        }
        if let Some(faults) = &self.plan.second {
            let befell = |strike: &&Strike<Rule>| self.second.seen().fault(strike.fault.name()) > 0;
            self.count("second namespace", u64::from(self.second.seen().keys_put > 0));
            self.count("faults of the second namespace", faults.iter().filter(befell).count() as u64);
        }
        if !self.plan.unknown.is_empty() {
            let asked: HashSet<String> = self
                .kv
                .requests()
                .into_iter()
                .filter(|it| it.operation.is_read())
                .flat_map(|it| it.keys)
                .collect();
            let asked = self.plan.unknown.iter().filter(|id| asked.contains(&format!("tasks:{id}"))).count();
            self.timeline.note(format_args!(
                "{asked} of the burst's {} tasks were looked up",
                self.plan.unknown.len()
            ));
            self.count("burst of unknown updates", u64::from(asked >= 100));
        }
    }
}

/// Counts if another replica became the active projector while the former one was stopped.
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

/// Waits until a former projector knows that it is not active, and has had time to hand over its next writes.
///
/// It may not be killed earlier: no other replica would know of a write that it sent after SIGCONT.
async fn handed_over(fleet: &Fleet, former: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    // Right after SIGCONT the projector has not yet checked.
    sleep(Duration::from_millis(1_000)).await;
    while fleet.all_active().await.contains(&former) && Instant::now() < deadline {
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_millis(500)).await;
}
