//! The settings of a history: how many servers and namespaces, which limits, which tuning; and the times of the simulated world,
//! which are short, so that much happens in little time.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use super::dice::Dice;
use crate::durable::projector::shares::{Limits, Share};
use crate::settings::Tuning;

/// How many ids the events are about.
pub(super) const TASKS: usize = 3;

/// How many replicas write to the first namespace. Where there is a second, one more writes to that.
pub(super) const REPLICAS: usize = 3;

pub(super) const SETTLE_AFTER: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
pub(super) const ACK_WAIT: Duration = Duration::from_secs(12);

/// So few that holders have to wait for their next renewal.
pub(super) const READ_AHEAD: u64 = 2;

/// Of each replica's ledger: so few bytes that tasks are forgotten.
pub(super) const CACHE: u64 = 2_000;

/// How much of the world's time passes at a time, in ms.
pub(super) const TICK: u64 = 250;

/// The longest that a process is stopped or cut off, in ms.
pub(super) const LONGEST_AWAY: u64 = 20_000;

/// How long the stream keeps an event, in ms.
pub(super) const MAX_AGE: u64 = 60_000;

/// How long a settled tombstone lives: as long as an event, and as a process may be away with it in its hands.
pub(super) const MEMORY: Duration = Duration::from_secs(100);

/// The settings of one history.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) clustered: bool,
    pub(super) two_namespaces: bool,
    /// Which tasks KV knows before the first event.
    pub(super) known: [bool; TASKS],
    /// Whether some values are refused by KV.
    pub(super) poison: bool,
    /// Whether what follows the faults lasts until all deleted tasks are forgotten.
    pub(super) long: bool,
    /// How many pulls of a replica may be taken in at a time.
    pub(super) workers: usize,
    pub(super) tuning: Knobs,
}

/// The tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Knobs {
    /// Requests, and in how many seconds.
    pub(super) budget: (u32, u64),
    /// In seconds.
    pub(super) min_write_interval: u64,
    pub(super) max_keys: u16,
    /// In seconds.
    pub(super) retry_after: u64,
    pub(super) attempts: u32,
}

impl Knobs {
    /// `poison`: a task that KV refuses is found out only beside one that it takes, in the same request; one that holds no more
    /// than all that are refused at a time may never be shared.
    pub(super) fn draw(poison: bool, dice: &mut Dice) -> Self {
        let keys = if poison { [4, 4, 4, 10] } else { [2, 2, 1, 10] };
        // It takes many requests to find out which tasks are refused.
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

/// One task of each kind may wait in memory; the next ones wait in NATS.
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
