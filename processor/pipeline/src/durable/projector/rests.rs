//! Remembers when each task was last written, for long `minWriteInterval`s. Pure.
//!
//! It keeps a hash of each task, some 50 bytes however long the id is. Beyond the limit it forgets
//! the oldest rest. Then the next write of that task may come too early, which costs money and does
//! no harm.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use foldhash::fast::RandomState;
use taskpipeline_contract::TaskId;
use tokio::time::Instant;

use crate::durable::projector::deferred::IdHash;

/// The most rests: some 22 MB.
const MOST: usize = 450_000;

/// When each task was last written, while `minWriteInterval` keeps it from being written again.
#[derive(Debug)]
pub(crate) struct Rests {
    began: Instant,
    /// The time of the last write, in ms since `began`.
    written: HashMap<IdHash, u32, RandomState>,
    /// In the order of the writes. A task that was written again is here twice.
    order: VecDeque<(IdHash, u32)>,
    forgotten: u64,
}

impl Rests {
    pub(crate) fn new(now: Instant) -> Self {
        Self { began: now, written: HashMap::default(), order: VecDeque::new(), forgotten: 0 }
    }

    /// Records a write. Writes older than `interval` are forgotten.
    pub(crate) fn written(&mut self, id: &TaskId, interval: Duration, now: Instant) {
        self.forget_before(interval, now);
        let (hash, at) = (IdHash::of(id), self.millis(now));
        self.written.insert(hash, at);
        self.order.push_back((hash, at));
        while self.order.len() > MOST {
            self.forgotten += u64::from(self.drop_oldest());
        }
    }

    /// When the rest of a task ends, or `None` if the task does not rest.
    pub(crate) fn until(&self, id: &TaskId, interval: Duration, now: Instant) -> Option<Instant> {
        if self.written.is_empty() {
            return None;
        }
        let at = self.written.get(&IdHash::of(id))?;
        let until = self.began + Duration::from_millis((*at).into()) + interval;
        (until > now).then_some(until)
    }

    /// Takes the number of rests that were forgotten before their end.
    pub(crate) fn take_forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }

    fn forget_before(&mut self, interval: Duration, now: Instant) {
        let oldest = now.checked_sub(interval).map_or(0, |oldest| self.millis(oldest));
        while self.order.front().is_some_and(|(_, at)| *at < oldest) {
            self.drop_oldest();
        }
    }

    /// Returns whether the dropped entry still counted.
    fn drop_oldest(&mut self) -> bool {
        let Some((hash, at)) = self.order.pop_front() else { return false };
        let counts = self.written.get(&hash) == Some(&at);
        if counts {
            self.written.remove(&hash);
        }
        counts
    }

    /// 49 days fit. A replica that runs longer starts again without rests.
    fn millis(&mut self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.began).as_millis();
        u32::try_from(since).unwrap_or_else(|_| {
            *self = Self { forgotten: self.forgotten, ..Self::new(now) };
            0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> TaskId {
        TaskId::new(format!("task-{n}")).unwrap()
    }

    #[test]
    fn a_task_rests_from_its_last_write_on_for_as_long_as_the_interval_is_now() {
        let now = Instant::now();
        let (minute, mut rests) = (Duration::from_secs(60), Rests::new(now));
        rests.written(&id(1), minute, now);
        rests.written(&id(1), minute, now + minute / 2);
        let until = |rests: &Rests, interval, at| rests.until(&id(1), interval, at);
        assert_eq!(until(&rests, minute, now + minute), Some(now + minute * 3 / 2));
        assert_eq!(until(&rests, minute / 4, now + minute), None, "a shorter interval holds at once");
        assert_eq!(until(&rests, minute, now + minute * 3 / 2), None);
        rests.written(&id(2), minute, now + minute * 2);
        assert_eq!(rests.written.len(), 1, "what has rested is forgotten");
    }

    #[test]
    fn of_more_than_are_kept_the_oldest_are_forgotten_and_counted() {
        let now = Instant::now();
        let (day, mut rests) = (Duration::from_secs(86_400), Rests::new(now));
        for n in 0..MOST + 10 {
            rests.written(&id(n), day, now);
        }
        assert_eq!((rests.written.len(), rests.take_forgotten()), (MOST, 10));
        assert!(rests.until(&id(9), day, now).is_none() && rests.until(&id(10), day, now).is_some());
        assert_eq!(rests.take_forgotten(), 0);
    }
}
