//! Cloudflare KV over its REST API v4: what is sent, what an answer means, and how often one may ask.
//!
//! Nothing in here decides what is written or whether a failure is tried again.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::num::NonZeroU16;
use std::time::Duration;

use taskpipeline_contract::TaskKey;

mod allowance;
mod answer;
mod budget;
mod client;
mod operation;
mod puts;
mod response;
mod settings;

pub use allowance::{Allowance, Others};
pub use answer::{Entry, Failure, KeyPage, LONGEST_WAIT, ListedKey};
pub use budget::{Budget, RequestBudget, Spare, UNKNOWN};
pub use client::{ClientError, Namespace};
pub use operation::Operation;
pub use puts::{PutBody, Puts};
pub use response::Response;
pub use settings::KvSettings;

/// The most keys of one bulk put or delete (Cloudflare's limit).
pub const MAX_KEYS_PER_WRITE: NonZeroU16 = NonZeroU16::MIN.saturating_add(9_999);

/// The most keys of one bulk get (Cloudflare's limit).
pub const MAX_KEYS_PER_READ: usize = 100;

/// What the projector asks of KV. [`Namespace`] is the real one; tests of time put another in its place.
pub trait BulkApi: Clone + Send + Sync + 'static {
    /// Writes these tasks. Answers the keys that KV names as not written.
    ///
    /// # Errors
    /// The failure's class says what to do; whether anything was written is not known then.
    fn bulk_put(&self, body: PutBody) -> impl Future<Output = Result<HashSet<String>, Failure>> + Send;

    /// Deletes these keys; one that is not there counts as deleted. Answers the keys that KV names as not
    /// deleted.
    ///
    /// # Errors
    /// As [`Self::bulk_put`].
    fn bulk_delete(&self, keys: &[TaskKey]) -> impl Future<Output = Result<HashSet<String>, Failure>> + Send;

    /// Reads the values of at most [`MAX_KEYS_PER_READ`] keys; a key without one is absent or `None`.
    /// What it answers may be a minute old.
    ///
    /// # Errors
    /// As [`Self::bulk_put`].
    fn bulk_get(
        &self,
        keys: &[TaskKey],
    ) -> impl Future<Output = Result<HashMap<String, Option<String>>, Failure>> + Send;

    /// How long each request may take from now on.
    fn set_request_timeout(&self, _: Duration) {}

    /// What the last answer said is left of the token's limit, if it did.
    fn allowance(&self) -> Option<Allowance> {
        None
    }
}
