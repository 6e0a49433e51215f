//! The time at which each task landed in KV, for loads in which each event is about a distinct task.
//!
//! The simulator is in the same process, and is checked every millisecond. So a time is late by at most about a millisecond.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::events::task_id;
use crate::stage::Stage;

/// The published tasks and the landed ones.
#[derive(Debug, Default)]
struct Log {
    /// Tasks by number, with the time at which each was published.
    waiting: VecDeque<(u64, Instant)>,
    /// The time of publishing, and the time until landing in milliseconds.
    landed: Vec<(Instant, f64)>,
}

/// Watches for landings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Landings {
    log: Arc<Mutex<Log>>,
}

impl Landings {
    /// Records that this task is published now.
    pub(crate) fn published(&self, task: u64, at: Instant) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).waiting.push_back((task, at));
    }

    /// The number of tasks that have not landed.
    pub(crate) fn waiting(&self) -> usize {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }

    /// The times until landing of all tasks that were published since `from`, in milliseconds.
    pub(crate) fn took(&self, from: Instant) -> Vec<f64> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.landed.iter().filter(|(published, _)| *published >= from).map(|(_, took)| *took).collect()
    }

    /// Watches until it is dropped.
    pub(crate) async fn watch(&self, stage: &Stage) {
        let mut before = 0.0;
        loop {
            sleep(Duration::from_millis(1)).await;
            let landed = stage.landed();
            if landed > before {
                before = landed;
                self.look(stage, Instant::now());
            }
        }
    }

    fn look(&self, stage: &Stage, now: Instant) {
        let log = &mut *self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.waiting.retain(|(task, published)| {
            let there = stage.kv.get(&format!("tasks:{}", task_id(*task))).is_some();
            if there {
                log.landed.push((*published, now.duration_since(*published).as_secs_f64() * 1_000.0));
            }
            !there
        });
    }
}
