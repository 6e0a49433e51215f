//! Requests of the budget that a command may send while a pipeline runs: it asks for some, and whoever holds the
//! budget takes them out of it and grants them. So all together never send more than the budget allows.
//!
//! One key of the ledger's bucket, written by compare-and-set, carries both the wish and the grant. Where nobody
//! holds the control record, the command takes what its last holder has left. Nothing here sends to KV.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::debug;

use crate::durable::bucket::{Bucket, Revision, WriteError};
use crate::durable::control::holder::Holder;
use crate::durable::control::record::{Control, LEASE, inherited};
use crate::durable::control::register::Register;
use crate::durable::ledger::LedgerError;
use taskpipeline_kv::{Budget, RequestBudget};

/// As many as a command asks for at a time. Few: what is granted is spent a little later than it is counted.
const WANTED: u32 = 4;

/// How often a command looks whether something was granted.
const LOOK: Duration = Duration::from_millis(100);

/// After so long a wish is one of a command that is gone.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// The loan record: how many requests a command asks for, and how many were granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Loan {
    /// Who asks.
    by: String,
    /// For how many requests.
    pub(crate) wanted: u32,
    /// How many may be sent; none until it is granted.
    granted: u32,
}

/// A wish that is not granted yet, as it was read.
pub(crate) struct Asked {
    pub(crate) loan: Loan,
    revision: Revision,
}

impl<R: Register> Holder<R> {
    /// What a command asks for, if one does. One that cannot be read now is read the next time.
    pub(crate) async fn asked(&self) -> Option<Asked> {
        let (loan, revision) = self.loan().await.ok()??;
        (loan.granted == 0).then_some(Asked { loan, revision })
    }

    /// Grants so many requests, which have been taken out of the budget. Lost on the way, they are not spent.
    pub(crate) async fn grant(&self, asked: Asked, requests: u32) {
        let loan = Loan { granted: requests, ..asked.loan };
        if let Err(error) = self.write_loan(&loan, asked.revision).await {
            debug!(requests, %error, "could not lend requests");
        }
    }

    async fn loan(&self) -> Result<Option<(Loan, Revision)>, LedgerError> {
        let Some(stored) = self.bucket.get(&self.names.loan(&self.target)).await? else { return Ok(None) };
        // One that cannot be read is overwritten by the next wish.
        let loan = serde_json::from_slice(&stored.value).unwrap_or(Loan {
            by: String::new(),
            wanted: 0,
            granted: 1,
        });
        Ok(Some((loan, stored.revision)))
    }

    async fn write_loan(&self, loan: &Loan, expected: Revision) -> Result<Revision, WriteError> {
        let value = serde_json::to_vec(loan).map_err(|error| WriteError::Unknown(error.to_string()))?;
        let subject = self.names.loan(&self.target);
        self.bucket.compare_and_set(subject, value, expected, None).await
    }
}

/// A command's side.
pub(crate) struct Borrower<R = Bucket> {
    holder: Holder<R>,
    budget: RequestBudget,
    left: u32,
    /// The control record's revision, and since when it has been that.
    watched: Option<(Revision, Instant)>,
}

impl<R: Register> Borrower<R> {
    pub(crate) fn new(holder: Holder<R>, budget: RequestBudget) -> Self {
        Self { holder, budget, left: 0, watched: None }
    }

    /// Waits until one request may be sent.
    ///
    /// # Errors
    /// Where NATS does not answer.
    pub(crate) async fn one(&mut self) -> Result<(), LedgerError> {
        while self.left == 0 {
            self.left = self.borrow().await?;
        }
        self.left -= 1;
        Ok(())
    }

    async fn borrow(&mut self) -> Result<u32, LedgerError> {
        let mut mine: Option<Revision> = None;
        let mut others: Option<(Revision, Instant)> = None;
        loop {
            let found = self.holder.loan().await?;
            let now = self.holder.bucket.now();
            let revision = found.as_ref().map_or(Revision::default(), |(_, revision)| *revision);
            match found {
                Some((loan, _)) if mine.is_some() && loan.by == *self.holder.replica => {
                    if loan.granted > 0 {
                        return Ok(loan.granted);
                    }
                }
                // Another command's turn, unless it is gone.
                Some((loan, _))
                    if loan.granted == 0
                        && loan.by != *self.holder.replica
                        && !others.is_some_and(|(known, since)| {
                            known == revision && now.duration_since(since) > FORGOTTEN
                        }) =>
                {
                    if others.is_none_or(|(known, _)| known != revision) {
                        others = Some((revision, now));
                    }
                }
                _ => {
                    let by = self.holder.replica.to_string();
                    let loan = Loan { by, wanted: WANTED, granted: 0 };
                    match self.holder.write_loan(&loan, revision).await {
                        Ok(revision) => mine = Some(revision),
                        Err(error) if error.is_contended() => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if let Some(requests) = self.take_what_is_left().await? {
                return Ok(requests);
            }
            self.holder.bucket.sleep(LOOK).await;
        }
    }

    /// Where nobody projects, nobody grants: then what is left of the budget is taken from the record itself.
    async fn take_what_is_left(&mut self) -> Result<Option<u32>, LedgerError> {
        let at = self.holder.bucket.now();
        let found = self.holder.read().await?;
        let revision = found.as_ref().map_or(Revision::default(), |(_, revision)| *revision);
        let since = match self.watched {
            Some((known, since)) if known == revision => since,
            _ => at,
        };
        self.watched = Some((revision, since));
        let unchanged_for = at.duration_since(since);
        let found = found.map(|(control, _)| control);
        if found.as_ref().is_some_and(|control| control.holder.is_some()) && unchanged_for < LEASE {
            return Ok(None);
        }
        let spare = inherited(found.as_ref(), unchanged_for);
        let whole = Budget::resumed(self.budget, spare, at).whole(at);
        let taken = whole.min(WANTED);
        if taken == 0 {
            return Ok(None);
        }
        let left = Control::left(found.as_ref(), whole - taken, self.holder.bucket.wall());
        match self.holder.write(&left, revision).await {
            Ok(revision) => {
                self.watched = Some((revision, self.holder.bucket.now()));
                Ok(Some(taken))
            }
            Err(error) if error.is_contended() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
