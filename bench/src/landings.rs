//! When each task landed in KV, for loads in which each event is about a task of its own. It looks every
//! millisecond, from the process that the simulator is in, so a moment is at most about that late.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::events::task_id;
use crate::stage::Stage;

/// What is on its way, and what has come.
#[derive(Debug, Default)]
struct Log {
    /// Tasks by number, with the moment in which each was published.
    waiting: VecDeque<(u64, Instant)>,
    /// The moment of publishing and how long it took, in milliseconds.
    landed: Vec<(Instant, f64)>,
}

/// Watches for landings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Landings {
    log: Arc<Mutex<Log>>,
}

impl Landings {
    /// This task is published now.
    pub(crate) fn published(&self, task: u64, at: Instant) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).waiting.push_back((task, at));
    }

    /// How many have not landed.
    pub(crate) fn waiting(&self) -> usize {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }

    /// How long each took that was published from `from` on, in milliseconds.
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
