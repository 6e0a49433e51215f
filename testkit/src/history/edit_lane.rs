//! Editing the settings of running replicas by their file, and looking whether they do as it says.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::sleep_until;

use super::edit::{Edit, spoilt};
use super::fleet::Fleet;
use super::moment::Strike;
use super::stage::Stage;
use crate::eventually;

/// How soon every replica does as the file says: it is looked at once a second.
const TAKEN: Duration = Duration::from_secs(10);

impl Stage {
    /// All edits. Each has the replicas for itself: one that starts must not find a file that cannot work.
    ///
    /// # Errors
    /// Where a replica does not do as the file says.
    pub(crate) async fn edit_lane(&self) -> anyhow::Result<()> {
        for Strike { at, fault: edit } in &self.plan.edits {
            sleep_until(self.timeline.start() + *at).await;
            let fleet = self.fleet.lock().await;
            let mut settings = self.settings.settings.lock().await;
            self.timeline.note(format_args!("== {edit:?}"));
            let edited = settings.clone().with(edit);
            let text = self.settings.text(&edited);
            if let Edit::Refused(number) = edit {
                self.refused(&fleet, &text, *number).await?;
            } else {
                self.settings.write(&text)?;
                let shown = shown(&fleet, edit).await;
                shown.with_context(|| format!("the replicas do not take over: {edit:?}"))?;
                *settings = edited;
            }
            self.timeline.note(format_args!("== {}: done", edit.name()));
            self.count(edit.name(), 1);
        }
        Ok(())
    }

    /// A file that cannot work: every replica refuses it and stays with what it had.
    async fn refused(&self, fleet: &Fleet, good: &str, number: usize) -> anyhow::Result<()> {
        const REFUSALS: &str = "taskpipeline_settings_refused_total";
        let settings = async || -> anyhow::Result<Vec<f64>> { fleet.metric("taskpipeline_setting").await };
        // One that was started just now does not answer yet.
        let known = eventually(TAKEN, async || Ok((fleet.metric(REFUSALS).await?, settings().await?)));
        let (refusals, before) = known.await?;
        self.settings.write(&spoilt(good, number))?;
        let refused = eventually(TAKEN, async || {
            let now = fleet.metric(REFUSALS).await?;
            let each = now.iter().zip(&refusals).all(|(now, before)| now > before);
            ensure!(each, "not each replica has refused it: {refusals:?}, then {now:?}");
            Ok(())
        });
        let refused = refused.await.with_context(|| format!("settings that cannot work, number {number}"));
        let after = settings().await;
        self.settings.write(good)?;
        refused?;
        let after = after?;
        ensure!(after == before, "refused settings are in effect: {before:?}, then {after:?}");
        Ok(())
    }
}

/// Waits until each replica shows what an edit sets.
async fn shown(fleet: &Fleet, edit: &Edit) -> anyhow::Result<()> {
    eventually(TAKEN, async || {
        for (name, value) in edit.shows() {
            let all = fleet.metric(&format!("taskpipeline_setting{{name=\"{name}\"}}")).await?;
            let is = |found: &f64| (found - value).abs() < 1e-6;
            ensure!(all.iter().all(is), "{name} should be {value} and is {all:?}");
        }
        Ok(())
    })
    .await
}
