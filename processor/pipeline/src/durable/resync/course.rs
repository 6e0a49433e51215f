//! The course of a resync: its start, its progress and its end.
//!
//! All writes go through the projector of the replica that holds the control record, or of this
//! process if there is none. This module does not write to KV.

use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::ResyncError;
use super::progress::Progress;
use super::reader::{Count, Counted};
use crate::durable::bucket::{Revision, WriteError};
use crate::durable::clock::now;
use crate::durable::control::holder::Holder;
use crate::durable::control::record::{Control, LEASE};
use crate::durable::projector::{self, Parts};

/// The interval between two checks of the progress.
const LOOK: Duration = Duration::from_millis(500);

/// The most attempts of a write that NATS does not confirm.
const MOST_TRIES: usize = 20;

/// The record of a running resync in the bucket of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Marker {
    /// The resync is over when everything up to here is settled.
    pub(super) up_to: Revision,
    /// When the resync was started, in ms since 1970.
    pub(super) begun: i64,
}

/// A running resync: its start, its progress and its end.
pub(super) struct Course<'a> {
    pub(super) holder: &'a Holder,
    pub(super) progress: &'a Progress,
    pub(super) requests: &'a Count,
}

impl Course<'_> {
    /// The newest revision of the record of any task.
    pub(super) async fn newest_task(&self) -> Result<Revision, ResyncError> {
        let newest = self.holder.bucket.get(&self.holder.names.tasks()).await?;
        Ok(newest.map_or(Revision::default(), |stored| stored.revision))
    }

    /// The revision up to which everything is settled; 0 if no replica has ever projected.
    pub(super) async fn settled(&self) -> Result<Revision, ResyncError> {
        Ok(self.holder.read().await?.map_or(Revision::default(), |(control, _)| control.settled))
    }

    /// Returns whether a replica renews the control record, and so writes to KV.
    pub(super) async fn is_held(&self) -> Result<bool, ResyncError> {
        let before = self.holder.read().await?.map(|(_, revision)| revision);
        tokio::time::sleep(LEASE).await;
        let after = self.holder.read().await?;
        Ok(after.is_some_and(|(control, revision)| control.holder.is_some() && before != Some(revision)))
    }

    /// Returns the unfinished resync, if there is one. Otherwise starts a new one, from the first
    /// record.
    pub(super) async fn begin(&self, restart: bool) -> Result<Marker, ResyncError> {
        if !restart && let Some((marker, _)) = self.marker().await? {
            let settled = self.settled().await?;
            if settled < marker.up_to {
                self.progress.print(&format!(
                    "continuing the resync started {}, at change {} of {} (--restart starts again from the beginning)",
                    when(marker.begun),
                    settled.0,
                    marker.up_to.0
                ));
                return Ok(marker);
            }
            // The finished one does not count for this one: KV may have been lost again since.
            self.progress.print(&format!(
                "the resync started {} has finished meanwhile; starting a new one",
                when(marker.begun)
            ));
        }
        let up_to = self.newest_task().await?;
        // In this order, because a marker without a reset would look like a finished resync.
        self.reset().await?;
        let marker = Marker { up_to, begun: now() };
        self.mark(marker).await?;
        Ok(marker)
    }

    /// Ends the resync.
    pub(super) async fn finish(&self) -> Result<(), ResyncError> {
        if let Some((_, revision)) = self.marker().await? {
            let (subject, gone) = (self.subject(), Some(Duration::from_secs(1)));
            // The write fails if another command has just started a resync, whose marker then
            // stays.
            let written = self.holder.bucket.compare_and_set(subject, Vec::new(), revision, gone).await;
            if let Err(error @ WriteError::Unknown(_)) = written {
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn subject(&self) -> String {
        self.holder.names.resync(&self.holder.target)
    }

    async fn marker(&self) -> Result<Option<(Marker, Revision)>, ResyncError> {
        let Some(stored) = self.holder.bucket.get(&self.subject()).await? else { return Ok(None) };
        // An empty marker is about to expire. An unreadable one is written again.
        let marker = serde_json::from_slice(&stored.value).ok();
        Ok(marker.map(|marker| (marker, stored.revision)))
    }

    async fn mark(&self, marker: Marker) -> Result<(), ResyncError> {
        let value = serde_json::to_vec(&marker).map_err(|error| {
            WriteError::Unknown(format!("cannot encode the resync marker as JSON: {error}"))
        })?;
        self.holder.bucket.set(self.subject(), value).await?;
        Ok(())
    }

    /// Resets the watermark to zero. A live holder notices this at its next renewal, and starts
    /// again.
    async fn reset(&self) -> Result<(), ResyncError> {
        let mut tries = 0;
        loop {
            let Some((found, revision)) = self.holder.read().await? else { return Ok(()) };
            // A released record stays clean: its last holder has no request that could take effect
            // later.
            let clean = found.clean && found.holder.is_none();
            let reset = Control { clean, ..found.handed(Revision::default()) };
            match self.holder.write(&reset, revision).await {
                Ok(_) => return Ok(()),
                Err(error) if tries >= MOST_TRIES => return Err(error.into()),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(LOOK / 10).await;
        }
    }

    /// Waits until everything up to `up_to` is settled. If no replica projects, `parts` do.
    ///
    /// # Errors
    /// If `shutdown` comes first. Requests in flight are finished, and the next run continues from
    /// there.
    pub(super) async fn settle(
        &self,
        up_to: Revision,
        parts: Parts<Counted>,
        grace: Duration,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), ResyncError> {
        let own = self.holder.replica.clone();
        self.progress.begin("settling changes", Some(up_to.0));
        let (stop, stopped) = watch::channel(None);
        let mut projecting = tokio::spawn(projector::run(parts, stopped));
        let outcome = tokio::select! {
            () = self.settled_up_to(up_to, &own) => Ok(()),
            () = shutdown => Err(()),
            _ = &mut projecting => return Err(crate::error::RunError::Stopped("projector").into()),
        };
        self.progress.end();
        let deadline = Instant::now() + grace;
        stop.send_replace(Some(deadline));
        if tokio::time::timeout_at(deadline + Duration::from_secs(1), projecting).await.is_err() {
            warn!("the projector did not stop in time; the next writer waits until its lease ends");
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(()) => {
                let settled = self.settled().await.unwrap_or_default();
                Err(ResyncError::Interrupted { settled: settled.0, up_to: up_to.0 })
            }
        }
    }

    async fn settled_up_to(&self, up_to: Revision, own: &str) {
        let mut complained = String::new();
        let mut told = None;
        loop {
            match self.look(up_to).await {
                Ok((true, _)) => return,
                Ok((false, holder)) => {
                    let by_own = holder.map(|holder| holder == own);
                    if let Some(by_own) = by_own.filter(|_| told != by_own) {
                        let who = if by_own { "no replica is alive: this process" } else { "a live replica" };
                        self.progress.print(&format!("{who} writes to KV"));
                        told = Some(by_own);
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != complained {
                        warn!(%error, "cannot read the progress");
                        complained = error;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns whether everything up to `up_to` is settled, and which replica projects.
    async fn look(&self, up_to: Revision) -> Result<(bool, Option<String>), ResyncError> {
        let control = self.holder.read().await?.map(|(control, _)| control);
        let settled = control.as_ref().map_or(Revision::default(), |control| control.settled);
        self.progress.at(settled.0, self.requests.get());
        // The newest record may have expired since. Then nothing settles up to `up_to`.
        let done = settled >= up_to || settled >= self.newest_task().await?;
        Ok((done, control.and_then(|control| control.holder)))
    }
}

/// A time as text for people.
fn when(millis: i64) -> String {
    taskpipeline_contract::Timestamp::from_unix_millis(millis)
        .map_or_else(|_| "some time ago".to_owned(), |at| at.to_string())
}
