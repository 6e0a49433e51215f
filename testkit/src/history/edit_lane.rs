//! Edits the settings file of running replicas, and checks that they follow it.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::sleep_until;

use super::edit::{Edit, spoilt};
use super::fleet::Fleet;
use super::moment::Strike;
use super::stage::Stage;
use crate::eventually;

/// The time limit for every replica to follow the file, which it reads once a second.
const TAKEN: Duration = Duration::from_secs(10);

impl Stage {
    /// Makes all edits.
    ///
    /// Each edit has the replicas for itself: a replica that starts must not find an invalid file.
    ///
    /// # Errors
    /// If a replica does not follow the file.
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
                shown.with_context(|| format!("the replicas do not follow the edit: {edit:?}"))?;
                *settings = edited;
            }
            self.timeline.note(format_args!("== {}: done", edit.name()));
            self.count(edit.name(), 1);
        }
        Ok(())
    }

    /// Writes an invalid file: every replica must refuse it and keep its settings.
    async fn refused(&self, fleet: &Fleet, good: &str, number: usize) -> anyhow::Result<()> {
        const REFUSALS: &str = "taskpipeline_settings_refused_total";
        let settings = async || -> anyhow::Result<Vec<f64>> { fleet.metric("taskpipeline_setting").await };
        // A replica that has just started does not answer yet.
        let known = eventually(TAKEN, async || Ok((fleet.metric(REFUSALS).await?, settings().await?)));
        let (refusals, before) = known.await?;
        self.settings.write(&spoilt(good, number))?;
        let refused = eventually(TAKEN, async || {
            let now = fleet.metric(REFUSALS).await?;
            let each = now.iter().zip(&refusals).all(|(now, before)| now > before);
            ensure!(each, "not every replica refused the file: {refusals:?}, then {now:?}");
            Ok(())
        });
        let refused = refused.await.with_context(|| format!("invalid settings, number {number}"));
        let after = settings().await;
        self.settings.write(good)?;
        refused?;
        let after = after?;
        ensure!(after == before, "refused settings are in effect: {before:?}, then {after:?}");
        Ok(())
    }
}

/// Waits until each replica shows the settings of an edit.
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
