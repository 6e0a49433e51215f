//! The course of a resync: that all of the ledger is to be written again, how far that is, and that it is over.
//! What is written goes through the projector of whoever holds the control record; where nobody does, through
//! one of this process. Nothing in here writes to KV.

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

/// How often is looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// How often a write of a record is tried that NATS does not confirm.
const MOST_TRIES: usize = 20;

/// Says in the ledger's bucket that a resync is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Marker {
    /// It is over when all up to here is settled.
    pub(super) up_to: Revision,
    /// When it was begun, in ms since 1970.
    pub(super) begun: i64,
}

/// A resync under way: its start, its progress and its end.
pub(super) struct Course<'a> {
    pub(super) holder: &'a Holder,
    pub(super) progress: &'a Progress,
    pub(super) requests: &'a Count,
}

impl Course<'_> {
    /// The newest revision of any task's record.
    pub(super) async fn newest_task(&self) -> Result<Revision, ResyncError> {
        let newest = self.holder.bucket.get(&self.holder.names.tasks()).await?;
        Ok(newest.map_or(Revision::default(), |stored| stored.revision))
    }

    /// Up to where all is settled; nothing is where nobody has ever projected.
    pub(super) async fn settled(&self) -> Result<Revision, ResyncError> {
        Ok(self.holder.read().await?.map_or(Revision::default(), |(control, _)| control.settled))
    }

    /// Whether somebody brings KV to what the ledger says: whether the control record is renewed.
    pub(super) async fn is_held(&self) -> Result<bool, ResyncError> {
        let before = self.holder.read().await?.map(|(_, revision)| revision);
        tokio::time::sleep(LEASE).await;
        let after = self.holder.read().await?;
        Ok(after.is_some_and(|(control, revision)| control.holder.is_some() && before != Some(revision)))
    }

    /// The resync that is under way and not over, if there is one; else a new one, from the first record on.
    pub(super) async fn begin(&self, restart: bool) -> Result<Marker, ResyncError> {
        if !restart && let Some((marker, _)) = self.marker().await? {
            let settled = self.settled().await?;
            if settled < marker.up_to {
                self.progress.say(&format!(
                    "going on with the resync begun {}, from change {} of {} (--restart begins anew)",
                    when(marker.begun),
                    settled.0,
                    marker.up_to.0
                ));
                return Ok(marker);
            }
            // Not taken for this one: KV may have been lost once more since then.
            self.progress.say(&format!(
                "the resync begun {} was finished meanwhile; this is a new one",
                when(marker.begun)
            ));
        }
        let up_to = self.newest_task().await?;
        // In this order: a marker without a reset would pass for a resync that is over.
        self.reset().await?;
        let marker = Marker { up_to, begun: now() };
        self.mark(marker).await?;
        Ok(marker)
    }

    /// The resync is over.
    pub(super) async fn finish(&self) -> Result<(), ResyncError> {
        if let Some((_, revision)) = self.marker().await? {
            let (subject, gone) = (self.subject(), Some(Duration::from_secs(1)));
            // It fails where another command has just begun one, and that is right.
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
        // An empty one is about to go; one that cannot be read is written anew.
        let marker = serde_json::from_slice(&stored.value).ok();
        Ok(marker.map(|marker| (marker, stored.revision)))
    }

    async fn mark(&self, marker: Marker) -> Result<(), ResyncError> {
        let value = serde_json::to_vec(&marker)
            .map_err(|error| WriteError::Unknown(format!("the marker cannot be written as JSON: {error}")))?;
        self.holder.bucket.set(self.subject(), value).await?;
        Ok(())
    }

    /// Nothing counts as settled any more. A live holder finds that out at its next renewal, and begins anew.
    async fn reset(&self) -> Result<(), ResyncError> {
        let mut tries = 0;
        loop {
            let Some((found, revision)) = self.holder.read().await? else { return Ok(()) };
            // Who has let it go has nothing on its way that could take effect later: that stays true.
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

    /// Waits until all up to here is settled; where nobody else projects, `parts` do.
    ///
    /// # Errors
    /// Where `shutdown` comes first: what is in hand is finished then, and another time goes on from there.
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
                        self.progress.say(&format!("{who} writes to KV"));
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

    /// Whether all up to here is settled, and who projects.
    async fn look(&self, up_to: Revision) -> Result<(bool, Option<String>), ResyncError> {
        let control = self.holder.read().await?.map(|(control, _)| control);
        let settled = control.as_ref().map_or(Revision::default(), |control| control.settled);
        self.progress.at(settled.0, self.requests.get());
        // The newest record may have expired since; then nothing settles up to it.
        let done = settled >= up_to || settled >= self.newest_task().await?;
        Ok((done, control.and_then(|control| control.holder)))
    }
}

/// A moment for people.
fn when(millis: i64) -> String {
    taskpipeline_contract::Timestamp::from_unix_millis(millis)
        .map_or_else(|_| "some time ago".to_owned(), |at| at.to_string())
}
