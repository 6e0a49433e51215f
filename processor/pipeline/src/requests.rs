//! The requests to KV that are in flight. Sends, and takes the answers; decides nothing.

use std::collections::HashMap;
use std::time::Duration;

use taskpipeline_contract::{TaskId, TaskKey};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::schedule::{Answer, AttemptId, Flight, KeyOutcome, Reply, Request};
use taskpipeline_kv::BulkApi;

/// The requests that are out.
pub(crate) struct Requests<K> {
    kv: K,
    out: JoinSet<(Answer, Instant, AttemptId)>,
}

impl<K: BulkApi> Requests<K> {
    pub(crate) fn new(kv: K) -> Self {
        Self { kv, out: JoinSet::new() }
    }

    /// How long each request may take from now on.
    pub(crate) fn set_timeout(&self, timeout: Duration) {
        self.kv.set_request_timeout(timeout);
    }

    /// Sends one.
    pub(crate) fn send(&mut self, Flight { request, attempt }: Flight) {
        let kv = self.kv.clone();
        self.out.spawn(async move {
            let sent = Instant::now();
            (send(request, kv).await, sent, attempt)
        });
    }

    /// The next answer; nothing where no request is out.
    ///
    /// # Errors
    /// Where a request's task fell over, which it cannot; its keys would be in flight for ever.
    pub(crate) async fn next(&mut self) -> Option<Result<Reply, JoinError>> {
        let done = self.out.join_next().await?;
        Some(done.map(|(answer, sent, attempt)| Reply {
            answer,
            sent,
            attempt,
            allowance: self.kv.allowance(),
        }))
    }

    /// Forgets those that are out; they may do their work all the same.
    pub(crate) fn abort(&mut self) {
        self.out.abort_all();
    }

    /// As [`Self::abort`], and nobody is told of them.
    pub(crate) fn restart(&mut self) {
        self.out = JoinSet::new();
    }
}

/// Sends it. Takes as long as the request's time-out at the most.
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
            // The usual answer names none, and then no key needs to be spelled out.
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
