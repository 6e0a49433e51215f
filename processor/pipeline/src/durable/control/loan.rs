//! Lends requests of the budget to commands while a pipeline runs. Sends nothing to KV.
//!
//! A command requests a part of the budget. The holder of the budget takes it out of the budget and
//! grants it. So all together never send more than the budget allows.
//!
//! One key in the bucket of the ledger, written by compare-and-set, has both the request and the
//! grant. If nobody holds the control record, the command takes from the rest that its last holder
//! left.

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

/// How much a command requests at a time. Few, because granted requests are spent a little later
/// than they are counted.
const WANTED: u32 = 4;

/// The interval between two checks for a grant.
const LOOK: Duration = Duration::from_millis(100);

/// After this time a request belongs to a command that is gone.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// The loan record: how many requests of the budget a command wants, and how many were granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Loan {
    /// The command.
    by: String,
    /// The number of requests that the command wants.
    pub(crate) wanted: u32,
    /// The number of requests that the command may send; 0 until a grant.
    granted: u32,
}

/// A request for a loan that is not granted yet.
pub(crate) struct LoanRequest {
    pub(crate) loan: Loan,
    revision: Revision,
}

impl<R: Register> Holder<R> {
    /// The open request of a command, or `None`. If the read fails, the next call tries again.
    pub(crate) async fn asked(&self) -> Option<LoanRequest> {
        let (loan, revision) = self.loan().await.ok()??;
        (loan.granted == 0).then_some(LoanRequest { loan, revision })
    }

    /// Grants requests that were taken out of the budget. If the write fails, nobody spends them.
    pub(crate) async fn grant(&self, asked: LoanRequest, requests: u32) {
        let loan = Loan { granted: requests, ..asked.loan };
        if let Err(error) = self.write_loan(&loan, asked.revision).await {
            debug!(requests, %error, "could not lend requests");
        }
    }

    async fn loan(&self) -> Result<Option<(Loan, Revision)>, LedgerError> {
        let Some(stored) = self.bucket.get(&self.names.loan(&self.target)).await? else { return Ok(None) };
        // The next command overwrites an unreadable record.
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

/// The side of the command.
pub(crate) struct Borrower<R = Bucket> {
    holder: Holder<R>,
    budget: RequestBudget,
    left: u32,
    /// The revision of the control record, and since when it has not changed.
    watched: Option<(Revision, Instant)>,
}

impl<R: Register> Borrower<R> {
    pub(crate) fn new(holder: Holder<R>, budget: RequestBudget) -> Self {
        Self { holder, budget, left: 0, watched: None }
    }

    /// Waits until the command may send one request.
    ///
    /// # Errors
    /// If NATS does not answer.
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
                // Waits for another command, unless that command is gone.
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

    /// Takes requests from the rest of the budget in the control record. Without a holder, nobody
    /// grants loans.
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
