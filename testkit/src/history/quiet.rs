//! The part of a history without faults, which must go smoothly: replicas write the same records at the same time,
//! and new tasks arrive while look-ups have no answer.

use std::time::Duration;

use anyhow::bail;
use taskpipeline_contract::EventKind;
use taskpipeline_simulator::{Fault, Rule, Scope};
use tokio::time::{Instant, sleep};

use super::check::Difference;
use super::events::Publication;
use super::stage::Stage;
use crate::{created, eventually};

/// The time limit for a new create to be in KV, whatever else waits.
///
/// The issue requires 5 s; here other histories run on the same cores.
const PROMPTLY: Duration = Duration::from_secs(15);

/// The number of conflicts that shows that the replicas did collide.
const CONFLICTS: f64 = 20.0;

impl Stage {
    /// Plays the part without faults: writes to the same records, and new tasks while look-ups have no answer.
    ///
    /// # Errors
    /// If an event waits that need not.
    pub(crate) async fn quiet(&self) -> anyhow::Result<()> {
        if !self.plan.quiet.contention.is_empty() {
            self.contend().await?;
        }
        if !self.plan.quiet.crowd.is_empty() {
            self.crowd().await?;
        }
        Ok(())
    }

    /// Publishes events of a few tasks, in portions so small that every replica always has some of each.
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

    /// Leaves look-ups of thousands of tasks without an answer, and checks that a new task does not wait for them.
    async fn crowd(&self) -> anyhow::Result<()> {
        const AWAY: &str = "look-ups are not answered";
        self.kv.inject(Rule::new(Fault::status(503)).on(Scope::Reads).named(AWAY));
        self.producer.acked(&self.plan.quiet.crowd).await?;
        self.timeline.note("== a crowd of unknown updates waits");
        // All updates must be in the ledger before the creates, or the test would show nothing.
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
