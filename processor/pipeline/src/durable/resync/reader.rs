//! Reads from KV for a command: with retries, and with requests that a running pipeline lends from
//! its budget.
//!
//! Also counts the requests of this process. Decides nothing about the values.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use taskpipeline_contract::{KEY_PREFIX, TaskKey};
use tracing::warn;

use super::ResyncError;
use crate::durable::control::holder::Holder;
use crate::durable::control::loan::Borrower;
use crate::schedule::delay_after;
use crate::settings::Tuning;
use taskpipeline_kv::{BulkApi, Entry, Failure, KeyPage, Namespace, PutBody};

/// The number of requests that were sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Arc<AtomicU64>);

impl Count {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A namespace that counts its requests.
#[derive(Clone)]
pub(super) struct Counted {
    pub(super) namespace: Namespace,
    pub(super) count: Count,
}

impl BulkApi for Counted {
    async fn bulk_put(&self, body: PutBody) -> Result<HashSet<String>, Failure> {
        self.count.one();
        self.namespace.bulk_put(body).await
    }

    async fn bulk_delete(&self, keys: &[TaskKey]) -> Result<HashSet<String>, Failure> {
        self.count.one();
        self.namespace.bulk_delete(keys).await
    }

    async fn bulk_get(&self, keys: &[TaskKey]) -> Result<HashMap<String, Option<String>>, Failure> {
        self.count.one();
        self.namespace.bulk_get(keys).await
    }
}

/// Reads from KV for a command, with retries, within the budget.
pub(super) struct Reader {
    kv: Counted,
    borrower: Borrower,
    tuning: Tuning,
}

impl Reader {
    pub(super) fn new(kv: Counted, holder: Holder, tuning: Tuning) -> Self {
        Self { kv, borrower: Borrower::new(holder, tuning.request_budget), tuning }
    }

    /// The number of requests of this process.
    pub(super) fn requests(&self) -> u64 {
        self.kv.count.get()
    }

    /// A page of the keys of tasks, from a cursor on.
    pub(super) async fn page(&mut self, cursor: Option<&str>) -> Result<KeyPage, ResyncError> {
        let page = self.request(async |kv: &Namespace| kv.list(KEY_PREFIX, cursor).await).await?;
        if page.cursor.is_some() && page.cursor.as_deref() == cursor {
            return Err(ResyncError::Kv("the list of keys repeats a cursor".to_owned()));
        }
        Ok(page)
    }

    /// The values of at most 100 keys, with their metadata if KV returns it.
    pub(super) async fn entries(
        &mut self,
        keys: &[TaskKey],
    ) -> Result<HashMap<String, Option<Entry>>, ResyncError> {
        self.request(async |kv: &Namespace| kv.bulk_get_whole(keys).await).await
    }

    async fn request<T>(
        &mut self,
        request: impl AsyncFn(&Namespace) -> Result<T, Failure>,
    ) -> Result<T, ResyncError> {
        let mut attempt = 0;
        loop {
            self.borrower.one().await?;
            self.kv.count.one();
            let failure = match request(&self.kv.namespace).await {
                Ok(answer) => return Ok(answer),
                Err(
                    failure @ (Failure::Config(_)
                    | Failure::DailyQuota(_)
                    | Failure::Refused(_)
                    | Failure::TooLarge(_)),
                ) => {
                    return Err(ResyncError::Kv(failure.to_string()));
                }
                Err(failure) => failure,
            };
            attempt += 1;
            let Some(delay) = delay_after(&self.tuning, attempt, &failure, rand::random()) else {
                return Err(ResyncError::Kv(format!("{failure} ({attempt} attempts)")));
            };
            warn!(error = %failure, retry_in_seconds = delay.as_secs_f64(), "cannot read from KV; retrying");
            tokio::time::sleep(delay).await;
        }
    }
}
