//! Cloudflare KV over its REST API v4: requests, the classification of answers, and the request budget.
//!
//! The crate does not decide which tasks are written, and does not retry.

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

/// The most keys in one bulk put or delete (Cloudflare's limit).
pub const MAX_KEYS_PER_WRITE: NonZeroU16 = NonZeroU16::MIN.saturating_add(9_999);

/// The most keys in one bulk get (Cloudflare's limit).
pub const MAX_KEYS_PER_READ: usize = 100;

/// The requests of the projector to KV. [`Namespace`] sends them; tests with simulated time replace it.
pub trait BulkApi: Clone + Send + Sync + 'static {
    /// Writes these tasks. Returns the keys that KV names as not written.
    ///
    /// # Errors
    /// If the request failed. Then it is unknown whether KV wrote anything.
    fn bulk_put(&self, body: PutBody) -> impl Future<Output = Result<HashSet<String>, Failure>> + Send;

    /// Deletes these keys; a missing key counts as deleted. Returns the keys that KV names as not deleted.
    ///
    /// # Errors
    /// As [`Self::bulk_put`].
    fn bulk_delete(&self, keys: &[TaskKey]) -> impl Future<Output = Result<HashSet<String>, Failure>> + Send;

    /// Reads the values of at most [`MAX_KEYS_PER_READ`] keys. A missing key is absent or `None`.
    ///
    /// The answer may be a minute old.
    ///
    /// # Errors
    /// As [`Self::bulk_put`].
    fn bulk_get(
        &self,
        keys: &[TaskKey],
    ) -> impl Future<Output = Result<HashMap<String, Option<String>>, Failure>> + Send;

    /// Sets the timeout of the following requests.
    fn set_request_timeout(&self, _: Duration) {}

    /// Takes the rest of the token's limit from the last answer, if the answer reported it.
    fn allowance(&self) -> Option<Allowance> {
        None
    }
}
