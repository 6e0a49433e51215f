//! What has to go smoothly once nothing goes wrong any more: replicas that write the same records at the same time, and
//! new tasks while look-ups are not answered.

use std::time::Duration;

use anyhow::bail;
use taskpipeline_contract::EventKind;
use taskpipeline_simulator::{Fault, Rule, Scope};
use tokio::time::{Instant, sleep};

use super::check::Difference;
use super::events::Publication;
use super::stage::Stage;
use crate::{created, eventually};

/// How soon a new create by others is in KV, whatever waits. The issue says 5 s; here other histories are played on the
/// same cores.
const PROMPTLY: Duration = Duration::from_secs(15);

/// From so many on it shows that the replicas got in each other's way.
const CONFLICTS: f64 = 20.0;

impl Stage {
    /// Plays what has to go smoothly when no fault is left: writes to the same records, and new tasks while look-ups are not answered.
    ///
    /// # Errors
    /// Where something has to wait that need not.
    pub(crate) async fn quiet(&self) -> anyhow::Result<()> {
        if !self.plan.quiet.contention.is_empty() {
            self.contend().await?;
        }
        if !self.plan.quiet.crowd.is_empty() {
            self.crowd().await?;
        }
        Ok(())
    }

    /// Events of a few tasks, in portions so small that every replica always has some of each.
    async fn contend(&self) -> anyhow::Result<()> {
        const PORTION: usize = 30;
        const CONFLICTS_OF_ALL: &str = "taskpipeline_ledger_conflicts_total";
        let before: f64 = self.fleet.lock().await.metric(CONFLICTS_OF_ALL).await?.iter().sum();
        for portion in self.plan.quiet.contention.chunks(PORTION) {
            self.producer.acked(portion).await?;
        }
        let after: f64 = self.fleet.lock().await.metric(CONFLICTS_OF_ALL).await?.iter().sum();
        self.timeline.note(format_args!("{} conflicts over three tasks", after - before));
        self.count("contention on three servers", u64::from(after - before >= CONFLICTS));
        Ok(())
    }

    /// No look-up is answered, and thousands wait: a new task waits for none of them.
    async fn crowd(&self) -> anyhow::Result<()> {
        const AWAY: &str = "look-ups are not answered";
        self.kv.inject(Rule::new(Fault::status(503)).on(Scope::Reads).named(AWAY));
        self.producer.acked(&self.plan.quiet.crowd).await?;
        self.timeline.note("== a crowd of unknown updates waits");
        // All of them are before the creates in the ledger, or nothing is shown.
        let stored = eventually(Duration::from_secs(60), async || {
            super::settle::Glance::take(&self.jetstream).await?.consumed(1)
        });
        stored.await?;
        let began = Instant::now();
        let create =
            |id: &String| Publication { kind: EventKind::Created, payload: created(id).to_string().into() };
        let creates: Vec<_> = self.plan.quiet.prompt.iter().map(create).collect();
        self.producer.acked(&creates).await?;
        let missing = || {
            let missing = |id: &&String| self.kv.get(&format!("tasks:{id}")).is_none();
            self.plan.quiet.prompt.iter().filter(missing).count()
        };
        while missing() > 0 && began.elapsed() < PROMPTLY {
            sleep(Duration::from_millis(20)).await;
        }
        let late = missing();
        self.timeline.note(format_args!("{late} creates are not in KV after {:.1?}", began.elapsed()));
        let befell = self.befell(AWAY);
        self.kv.remove_faults(AWAY);
        self.count("creates beside a crowd of look-ups", u64::from(befell > 0));
        if late > 0 {
            bail!(
                "1 differences, found while nothing went wrong:\n{}",
                Difference::Delayed { creates: late }
            );
        }
        Ok(())
    }
}
