//! The requests to KV that are in flight. Sends them and receives the answers; decides nothing.

use std::collections::HashMap;
use std::time::Duration;

use taskpipeline_contract::{TaskId, TaskKey};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::schedule::{Answer, AttemptId, Flight, KeyOutcome, Reply, Request};
use taskpipeline_kv::BulkApi;

/// The requests in flight.
pub(crate) struct Requests<K> {
    kv: K,
    out: JoinSet<(Answer, Instant, AttemptId)>,
}

impl<K: BulkApi> Requests<K> {
    pub(crate) fn new(kv: K) -> Self {
        Self { kv, out: JoinSet::new() }
    }

    /// Sets the time-out of later requests.
    pub(crate) fn set_timeout(&self, timeout: Duration) {
        self.kv.set_request_timeout(timeout);
    }

    pub(crate) fn send(&mut self, Flight { request, attempt }: Flight) {
        let kv = self.kv.clone();
        self.out.spawn(async move {
            let sent = Instant::now();
            (send(request, kv).await, sent, attempt)
        });
    }

    /// Waits for the next answer; `None` if no request is in flight.
    ///
    /// # Errors
    /// If the Rust task of a request panicked. Its keys would stay in flight indefinitely.
    pub(crate) async fn next(&mut self) -> Option<Result<Reply, JoinError>> {
        let done = self.out.join_next().await?;
        Some(done.map(|(answer, sent, attempt)| Reply {
            answer,
            sent,
            attempt,
            allowance: self.kv.allowance(),
        }))
    }

    /// Stops waiting for the requests in flight. They may still take effect.
    pub(crate) fn abort(&mut self) {
        self.out.abort_all();
    }

    /// Like [`Self::abort`], and [`Self::next`] does not return them.
    pub(crate) fn restart(&mut self) {
        self.out = JoinSet::new();
    }
}

/// Sends a request. Takes at most the time-out of a request.
pub(crate) async fn send(request: Request, kv: impl BulkApi) -> Answer {
    let operation = request.operation();
    let (ids, result) = match request {
        Request::Put(puts) => {
            let (ids, body) = puts.finish();
            let result = match body {
                Ok(body) => kv.bulk_put(body).await.map(|failed| written(&ids, &failed)),
                Err(failure) => Err(failure),
            };
            (ids, result)
        }
        Request::Delete(ids) => {
            let result = kv.bulk_delete(&keys(&ids)).await.map(|failed| written(&ids, &failed));
            (ids, result)
        }
        Request::Get(ids) => {
            let result = kv.bulk_get(&keys(&ids)).await.map(|values| read(&ids, values));
            (ids, result)
        }
    };
    Answer { operation, ids, result }
}

fn keys(ids: &[TaskId]) -> Vec<TaskKey> {
    ids.iter().cloned().map(TaskKey::new).collect()
}

fn written(ids: &[TaskId], failed: &std::collections::HashSet<String>) -> Vec<KeyOutcome> {
    ids.iter()
        .map(|id| {
            // The usual answer names no key, and then no key needs to be formatted.
            if !failed.is_empty() && failed.contains(&TaskKey::new(id.clone()).to_string()) {
                KeyOutcome::NotWritten
            } else {
                KeyOutcome::Landed
            }
        })
        .collect()
}

fn read(ids: &[TaskId], mut values: HashMap<String, Option<String>>) -> Vec<KeyOutcome> {
    ids.iter()
        .map(|id| KeyOutcome::Read(values.remove(&TaskKey::new(id.clone()).to_string()).flatten()))
        .collect()
}
