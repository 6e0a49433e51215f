//! The settings of a history: servers, namespaces, limits and tuning.
//!
//! The times of the simulated world are short, so that much happens in little time.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use super::dice::Dice;
use crate::durable::projector::shares::{Limits, Share};
use crate::settings::Tuning;

/// The number of task ids.
pub(super) const TASKS: usize = 3;

/// The number of replicas that write to the first namespace. If a second namespace exists, one more replica writes to it.
pub(super) const REPLICAS: usize = 3;

pub(super) const SETTLE_AFTER: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
pub(super) const ACK_WAIT: Duration = Duration::from_secs(12);

/// A value so small that holders have to wait for their next renewal.
pub(super) const READ_AHEAD: u64 = 2;

/// The cache of each replica's ledger, in bytes: so small that it forgets tasks.
pub(super) const CACHE: u64 = 2_000;

/// The step of the world's time, in ms.
pub(super) const TICK: u64 = 250;

/// The longest time for which a process is stopped or cut off, in ms.
pub(super) const LONGEST_AWAY: u64 = 20_000;

/// How long the stream keeps an event, in ms.
pub(super) const MAX_AGE: u64 = 60_000;

/// How long a settled tombstone lives: as long as an event, plus the longest time for which a process may be away with it.
pub(super) const MEMORY: Duration = Duration::from_secs(100);

/// The settings of one history.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) clustered: bool,
    pub(super) two_namespaces: bool,
    /// The tasks that KV contains before the first event.
    pub(super) known: [bool; TASKS],
    /// Whether KV refuses some values.
    pub(super) poison: bool,
    /// Whether the part after the faults lasts until all tombstones have expired.
    pub(super) long: bool,
    /// The number of pulls that a replica processes at a time.
    pub(super) workers: usize,
    pub(super) tuning: Knobs,
}

/// The tuning of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Knobs {
    /// The number of requests, and the period in seconds.
    pub(super) budget: (u32, u64),
    /// The shortest interval, in seconds.
    pub(super) min_write_interval: u64,
    pub(super) max_keys: u16,
    /// The delay, in seconds.
    pub(super) retry_after: u64,
    pub(super) attempts: u32,
}

impl Knobs {
    /// Draws the tuning.
    ///
    /// With `poison`, a refused task is found out only beside an accepted one in the same request. So a request must
    /// fit more tasks than are refused at a time.
    pub(super) fn draw(poison: bool, dice: &mut Dice) -> Self {
        let keys = if poison { [4, 4, 4, 10] } else { [2, 2, 1, 10] };
        // Finding out the refused tasks takes many requests.
        let tight = if poison { (30, 10) } else { (6, 10) };
        Self {
            budget: dice.pick(&[(1_000_000, 300), (1_000_000, 300), (30, 10), tight]),
            min_write_interval: dice.pick(&[1, 4]),
            max_keys: dice.pick(&keys),
            retry_after: dice.pick(&[1, 1, 4]),
            attempts: dice.pick(&[2, 5]),
        }
    }

    pub(super) fn tuning(self) -> Tuning {
        let mut tuning = Tuning {
            request_timeout: REQUEST_TIMEOUT,
            min_write_interval: Duration::from_secs(self.min_write_interval),
            max_keys: NonZeroU16::new(self.max_keys).unwrap(),
            ..Tuning::default()
        };
        tuning.retry.delays = vec![Duration::from_secs(self.retry_after)];
        tuning.retry.max_attempts = NonZeroU32::new(self.attempts).unwrap();
        tuning.request_budget.requests = NonZeroU32::new(self.budget.0).unwrap();
        tuning.request_budget.period = Duration::from_secs(self.budget.1);
        tuning
    }
}

impl Setting {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        let poison = dice.chance(15);
        Self {
            clustered: dice.chance(50),
            two_namespaces: dice.chance(20),
            known: [dice.chance(30), dice.chance(30), dice.chance(30)],
            poison,
            long: dice.chance(15),
            workers: 1 + dice.below(2),
            tuning: Knobs::draw(poison, dice),
        }
    }
}

/// Limits such that one task of each kind may wait in memory; the next ones wait in NATS.
pub(crate) fn limits() -> Limits {
    let one = 1;
    Limits {
        write: 1_000_000,
        others: [
            (Share::LookUp, one),
            (Share::Rest, one),
            (Share::Retry, one),
            (Share::Doubt, one),
            (Share::Letter, one),
        ],
    }
}
