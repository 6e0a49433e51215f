//! Reads and writes the control record for one replica: takes it, renews it, lets it go. What may be done with
//! it is decided in [`crate::durable::control::record`].

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

/// How often a replica that waits looks at the record.
const LOOK: Duration = Duration::from_millis(250);

/// How often a former holder tries to hand over what it may have spoilt.
const HANDOVER_TRIES: usize = 100;

/// With every how many renewals a holder looks whether the ledger is projected to another namespace, too.
const LOOK_FOR_OTHERS: u64 = 30;

/// How often a holder retries to release the record while another write of it is in progress.
const RELEASE_TRIES: usize = 20;

/// How far behind what was read a holder may read before its next renewal: what is written in half a second under
/// full load. As much is written twice when it dies.
pub(crate) const READ_AHEAD: u64 = 16_384;

/// The record as its holder has written it last.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) control: Control,
    pub(crate) revision: Revision,
    /// When the write of it was begun.
    pub(crate) since: Instant,
    /// Requests of the last holder may still take effect.
    pub(crate) doubt: Option<Doubt>,
    /// What the last holder has left of the budget.
    pub(crate) spare: Spare,
    /// The ledger is, or was lately, projected to another KV namespace too.
    pub(crate) shared: bool,
}

impl Held {
    /// How long a record is to live that this holder has settled. `memory`: how long where nobody else needs it. Another
    /// namespace's projector counts as one that remembers for that long after it was last seen; from then on it has as
    /// long again to read what was settled here meanwhile.
    pub(crate) fn time_to_live(&self, memory: Duration) -> Duration {
        if self.shared { memory.saturating_mul(2) } else { memory }
    }
}

/// What became of a renewal.
pub(crate) enum Renewal {
    /// It is still held.
    Held(Held),
    /// It is still held, and a former holder has handed over what it may have spoilt: to be projected again.
    Restarted(Held),
    /// Another has it.
    Lost,
    /// NATS does not say.
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
    /// How far behind what was read a renewal lets it read; in a pipeline [`READ_AHEAD`].
    pub(crate) ahead: u64,
}

impl<R: Register> Holder<R> {
    /// Waits until the record may be taken, and takes it; nothing, once it is to stop. What is being written by then
    /// is awaited: a record that was taken and not let go again would keep the next one waiting, in doubt.
    pub(crate) async fn acquire(&self, stop: &mut watch::Receiver<Option<Instant>>) -> Option<Held> {
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

    /// Takes the record, if it may be taken by now. `seen`: the revision that was found last, and since when it was there.
    ///
    /// # Errors
    /// Where the register does not answer.
    pub(crate) async fn try_acquire(
        &self,
        seen: &mut Option<(Revision, Instant)>,
    ) -> Result<Option<Held>, String> {
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
        // The server is asked for more only by who is about to take it.
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
                "the control record of KV is too old or ahead of the ledger: writing all tasks again. Tasks that were deleted meanwhile may remain in KV: `taskpipeline resync --verify` lists them as unmanaged, --delete-unmanaged deletes them"
            );
        }
        let shared = self.is_shared().await.map_err(|error| error.to_string())?;
        let (term, settled) = (control.term, control.settled.0);
        crash::point("taking-over");
        match self.write(&control, revision).await {
            Ok(revision) => {
                info!(term, from_revision = %settled, "became writer");
                Ok(Some(Held { control, revision, since, doubt, spare, shared }))
            }
            Err(error) if error.is_contended() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Renews it, with what is settled by now, and that records are going to be read up to some way behind
    /// `read`.
    pub(crate) async fn renew(&self, held: Held, settled: Settled, read: Revision) -> Renewal {
        let since = self.bucket.now();
        let control = held.control.renewed(settled, read.plus(self.ahead), self.bucket.wall());
        match self.write(&control, held.revision).await {
            Ok(revision) => {
                crash::point("recorded");
                let mut shared = held.shared;
                if control.beat.is_multiple_of(LOOK_FOR_OTHERS) {
                    // Not known, it stays what it was.
                    shared = self.is_shared().await.unwrap_or(shared);
                }
                Renewal::Held(Held { control, revision, since, doubt: None, shared, ..held })
            }
            Err(error) => self.look_after(&held, &control, since, &error).await,
        }
    }

    /// The record is not as it was left, or it is not known whether it was written.
    async fn look_after(&self, held: &Held, wanted: &Control, since: Instant, error: &WriteError) -> Renewal {
        let (found, revision) = match self.read().await {
            Ok(Some(found)) => found,
            // Gone with the bucket.
            Ok(None) => return Renewal::Lost,
            Err(unread) => return Renewal::Unknown(format!("{error}; {unread}")),
        };
        if found == *wanted {
            return Renewal::Held(Held { control: found, revision, since, doubt: None, ..held.clone() });
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
                Renewal::Restarted(Held { control, revision, since, doubt, ..held.clone() })
            }
            Err(error) => Renewal::Unknown(error.to_string()),
        }
    }

    /// Lets it go, for another to take at once.
    pub(crate) async fn release(&self, held: Held, settled: Settled, clean: bool, spare: u32) {
        let released = held.control.released(settled, clean, spare, self.bucket.wall());
        let settled = settled.settled;
        let mut written = self.write(&released, held.revision).await;
        // An own renewal that was not answered may be on its way through the cluster.
        for _ in 0..RELEASE_TRIES {
            if !matches!(written, Err(WriteError::Busy)) {
                break;
            }
            self.bucket.sleep(LOOK / 5).await;
            written = self.write(&released, held.revision).await;
        }
        match written {
            Ok(_) => info!(settled_revision = settled.0, "stopped being the writer"),
            // Another has it, and what was sent since may have spoilt what that one wrote.
            Err(WriteError::Conflict) => self.hand_over(&held).await,
            // It runs out by itself.
            Err(error) => warn!(%error, "cannot record that this replica is no longer the writer"),
        }
    }

    /// Another has the record: what this one has not seen settled while it was its own is to be written again.
    pub(crate) async fn hand_over(&self, held: &Held) {
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

    /// Whether there is a control record of another namespace whose projector may come back to what it knew.
    async fn is_shared(&self) -> Result<bool, ReadError> {
        let (own, now) = (self.names.control(&self.target), self.bucket.wall());
        let others = self.bucket.all(&self.names.controls()).await?;
        Ok(others.iter().filter(|stored| stored.subject != own).any(|stored| {
            let control = serde_json::from_slice::<Control>(&stored.value);
            control.is_ok_and(|control| control.may_come_back(now, self.memory))
        }))
    }

    /// The record as it is.
    pub(crate) async fn read(&self) -> Result<Option<(Control, Revision)>, ReadError> {
        let Some(stored) = self.bucket.get(&self.names.control(&self.target)).await? else { return Ok(None) };
        // One that cannot be read is as good as none, but for the revision that it has to be replaced at.
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

    /// Writes it where its revision is the expected one.
    pub(crate) async fn write(&self, control: &Control, expected: Revision) -> Result<Revision, WriteError> {
        let value = serde_json::to_vec(control).map_err(|error| WriteError::Unknown(error.to_string()))?;
        let subject = self.names.control(&self.target);
        self.bucket.compare_and_set(subject, value, expected, None).await
    }
}
