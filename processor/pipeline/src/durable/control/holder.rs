//! Takes, renews and releases the control record for one replica.
//! [`crate::durable::control::record`] decides what it may do.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::durable::bucket::{Bucket, ReadError, Revision, WriteError};
use crate::durable::control::record::{Claim, Claimant, Control, Doubt, Settled};
use crate::durable::control::register::Register;
use crate::durable::crash;
use crate::durable::drain::{deadline, stopped};
use crate::durable::names::{Names, Target};
use taskpipeline_kv::Spare;

/// The interval between two checks of the record by a replica that waits.
const LOOK: Duration = Duration::from_millis(250);

/// The most attempts of a former holder to hand over.
const HANDOVER_TRIES: usize = 100;

/// A holder checks at every nth renewal whether the ledger is also projected to another namespace.
const LOOK_FOR_OTHERS: u64 = 30;

/// The most attempts to release the record while another write of it is in progress.
const RELEASE_TRIES: usize = 20;

/// How many revisions a holder may read ahead before its next renewal: as many as are written in
/// half a second under full load.
///
/// If the holder dies, this many changes are written twice.
pub(crate) const READ_AHEAD: u64 = 16_384;

/// The record as its holder last wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) control: Control,
    pub(crate) revision: Revision,
    /// When the holder started this write.
    pub(crate) since: Instant,
    /// Requests of the last holder that may still take effect, or `None`.
    pub(crate) doubt: Option<Doubt>,
    /// The rest of the budget that the last holder left.
    pub(crate) spare: Spare,
    /// Whether the ledger is, or was lately, also projected to another KV namespace.
    pub(crate) shared: bool,
}

impl Lease {
    /// How long a record lives after this holder has settled it.
    ///
    /// `memory`: the time if nobody else needs the record. With another namespace it is twice as
    /// long. The other projector remembers for `memory` after it was last seen, and then needs as
    /// long again to read what was settled here.
    pub(crate) fn time_to_live(&self, memory: Duration) -> Duration {
        if self.shared { memory.saturating_mul(2) } else { memory }
    }
}

/// The outcome of a renewal.
pub(crate) enum Renewal {
    /// This replica still holds the record.
    Renewed(Lease),
    /// This replica still holds the record, and a former holder has handed over changes that must
    /// be projected again.
    Restarted(Lease),
    /// Another replica holds the record.
    Lost,
    /// The outcome is unknown, because NATS did not answer.
    Unknown(String),
}

/// Takes, renews and releases the control record for one replica.
#[derive(Clone)]
pub(crate) struct Holder<R = Bucket> {
    pub(crate) bucket: R,
    pub(crate) names: Arc<Names>,
    pub(crate) target: Target,
    pub(crate) replica: Arc<str>,
    /// How long the ledger remembers a delete after it was settled.
    pub(crate) memory: Option<Duration>,
    /// How many revisions a renewal lets the holder read ahead; in a pipeline [`READ_AHEAD`].
    pub(crate) ahead: u64,
}

impl<R: Register> Holder<R> {
    /// Waits until the record may be taken, and takes it; `None` after a stop.
    ///
    /// A write in progress is awaited. A record that is taken and not released would make the next
    /// replica wait, in doubt.
    pub(crate) async fn acquire(&self, stop: &mut watch::Receiver<Option<Instant>>) -> Option<Lease> {
        let mut seen: Option<(Revision, Instant)> = None;
        let mut complained = None;
        while stop.borrow().is_none() && stop.has_changed().is_ok() {
            let tried = tokio::select! {
                tried = self.try_acquire(&mut seen) => tried,
                () = deadline(stop) => return None,
            };
            match tried {
                Ok(Some(held)) => {
                    crash::point("took-over");
                    return Some(held);
                }
                Ok(None) => {}
                Err(error) if complained.as_ref() != Some(&error) => {
                    warn!(%error, "cannot find out which replica is the writer");
                    complained = Some(error);
                }
                Err(_) => {}
            }
            tokio::select! {
                () = self.bucket.sleep(LOOK) => {}
                () = stopped(stop) => {}
            }
        }
        None
    }

    /// Takes the record if that is allowed now. `seen`: the last revision found, and since when it
    /// has not changed.
    ///
    /// # Errors
    /// If the register does not answer.
    pub(crate) async fn try_acquire(
        &self,
        seen: &mut Option<(Revision, Instant)>,
    ) -> Result<Option<Lease>, String> {
        let since = self.bucket.now();
        let found = self.read().await.map_err(|error| error.to_string())?;
        let revision = found.as_ref().map_or(Revision::default(), |(_, revision)| *revision);
        let unchanged_since = match seen {
            Some((known, at)) if *known == revision => *at,
            _ => {
                *seen = Some((revision, since));
                since
            }
        };
        let found = found.map(|(control, _)| control);
        let mut claimant = Claimant {
            replica: &self.replica,
            unchanged_for: since.duration_since(unchanged_since),
            now: self.bucket.wall(),
            newest: Revision::last(),
            ahead: self.ahead,
            memory: self.memory,
        };
        // Only a replica that is about to take the record reads more from the server.
        if claimant.claim(found.as_ref()) == Claim::Wait {
            return Ok(None);
        }
        claimant.newest = self.bucket.newest().await.map_err(|error| error.to_string())?;
        let Claim::Take { control, doubt, spare } = claimant.claim(found.as_ref()) else {
            return Ok(None);
        };
        if let Some(found) = &found
            && claimant.is_forgotten(found)
        {
            warn!(
                "the control record of KV is too old or ahead of the ledger: writing all tasks again. Tasks that were \
                 deleted meanwhile may remain in KV: `taskpipeline resync --verify` lists them as unmanaged, \
                 --delete-unmanaged deletes them"
            );
        }
        let shared = self.is_shared().await.map_err(|error| error.to_string())?;
        let (term, settled) = (control.term, control.settled.0);
        crash::point("taking-over");
        match self.write(&control, revision).await {
            Ok(revision) => {
                info!(term, from_revision = %settled, "became writer");
                Ok(Some(Lease { control, revision, since, doubt, spare, shared }))
            }
            Err(error) if error.is_contended() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Renews the record with the settled revision. From now on the holder may read `ahead`
    /// revisions beyond `read`.
    pub(crate) async fn renew(&self, held: Lease, settled: Settled, read: Revision) -> Renewal {
        let since = self.bucket.now();
        let control = held.control.renewed(settled, read.plus(self.ahead), self.bucket.wall());
        match self.write(&control, held.revision).await {
            Ok(revision) => {
                crash::point("recorded");
                let mut shared = held.shared;
                if control.beat.is_multiple_of(LOOK_FOR_OTHERS) {
                    // If the read fails, the last known value stays.
                    shared = self.is_shared().await.unwrap_or(shared);
                }
                Renewal::Renewed(Lease { control, revision, since, doubt: None, shared, ..held })
            }
            Err(error) => self.look_after(&held, &control, since, &error).await,
        }
    }

    /// Finds the outcome of a renewal that failed, or whose outcome is unknown.
    async fn look_after(
        &self,
        held: &Lease,
        wanted: &Control,
        since: Instant,
        error: &WriteError,
    ) -> Renewal {
        let (found, revision) = match self.read().await {
            Ok(Some(found)) => found,
            // The bucket was deleted, and the record with it.
            Ok(None) => return Renewal::Lost,
            Err(unread) => return Renewal::Unknown(format!("{error}; {unread}")),
        };
        if found == *wanted {
            return Renewal::Renewed(Lease { control: found, revision, since, doubt: None, ..held.clone() });
        }
        if !found.is_held_by(&held.control) {
            return Renewal::Lost;
        }
        if found == held.control {
            return Renewal::Unknown(error.to_string());
        }
        let control = found.restarted(self.bucket.wall());
        match self.write(&control, revision).await {
            Ok(revision) => {
                let doubt = Some(Doubt { settled: control.sure, up_to: control.reading });
                Renewal::Restarted(Lease { control, revision, since, doubt, ..held.clone() })
            }
            Err(error) => Renewal::Unknown(error.to_string()),
        }
    }

    /// Releases the record, so that another replica can take it at once.
    pub(crate) async fn release(&self, held: Lease, settled: Settled, clean: bool, spare: u32) {
        let released = held.control.released(settled, clean, spare, self.bucket.wall());
        let settled = settled.settled;
        let mut written = self.write(&released, held.revision).await;
        // An earlier renewal without an answer may still be on its way through the cluster.
        for _ in 0..RELEASE_TRIES {
            if !matches!(written, Err(WriteError::Busy)) {
                break;
            }
            self.bucket.sleep(LOOK / 5).await;
            written = self.write(&released, held.revision).await;
        }
        match written {
            Ok(_) => info!(settled_revision = settled.0, "stopped being the writer"),
            // Another replica took the record, and later requests of this one may have overwritten
            // its values.
            Err(WriteError::Conflict) => self.hand_over(&held).await,
            // The record expires by itself.
            Err(error) => warn!(%error, "cannot record that this replica is no longer the writer"),
        }
    }

    /// Hands over after another replica took the record. Changes that were unsettled during the own
    /// term are written again.
    pub(crate) async fn hand_over(&self, held: &Lease) {
        for _ in 0..HANDOVER_TRIES {
            match self.read().await {
                Ok(None) => return,
                Ok(Some((found, revision))) => {
                    let handed = found.handed(held.control.settled);
                    if self.write(&handed, revision).await.is_ok() {
                        info!(from_revision = held.control.settled.0, "handed over to the next writer");
                        return;
                    }
                }
                Err(_) => {}
            }
            self.bucket.sleep(LOOK / 5).await;
        }
        warn!(from_revision = held.control.settled.0, "could not hand over to the next writer");
    }

    /// Returns whether another namespace has a control record whose projector may still rely on its
    /// watermark.
    async fn is_shared(&self) -> Result<bool, ReadError> {
        let (own, now) = (self.names.control(&self.target), self.bucket.wall());
        let others = self.bucket.all(&self.names.controls()).await?;
        Ok(others.iter().filter(|stored| stored.subject != own).any(|stored| {
            let control = serde_json::from_slice::<Control>(&stored.value);
            control.is_ok_and(|control| control.may_come_back(now, self.memory))
        }))
    }

    /// Reads the record and its revision.
    pub(crate) async fn read(&self) -> Result<Option<(Control, Revision)>, ReadError> {
        let Some(stored) = self.bucket.get(&self.names.control(&self.target)).await? else { return Ok(None) };
        // An unreadable record counts as none, but a write needs its revision.
        let control = serde_json::from_slice(&stored.value).unwrap_or(Control {
            holder: None,
            term: 0,
            settled: Revision::default(),
            sure: Revision::default(),
            reading: Revision::last(),
            spare: 0,
            clean: false,
            beat: 0,
            renewed: 0,
        });
        Ok(Some((control, stored.revision)))
    }

    /// Writes the record if its revision is the expected one.
    pub(crate) async fn write(&self, control: &Control, expected: Revision) -> Result<Revision, WriteError> {
        let value = serde_json::to_vec(control).map_err(|error| WriteError::Unknown(error.to_string()))?;
        let subject = self.names.control(&self.target);
        self.bucket.compare_and_set(subject, value, expected, None).await
    }
}
