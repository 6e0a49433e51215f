//! Moments as NATS, the ledger and tasks carry them, and the clocks by which a replica waits.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use taskpipeline_contract::Timestamp;
use tokio::time::Instant;

/// The wall clock, in ms since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The moments NATS tells of fit an `i64` until the year 2262.
pub(crate) fn nanos(time: time::OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

/// A message's time in whole milliseconds, as tasks carry it.
pub(crate) fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_unix_millis(nanos.div_euclid(1_000_000)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The clocks and the dice of a replica: the machine's, or those of a simulation.
pub(crate) trait Clock {
    /// The moment, by a clock that is never set.
    fn now(&self) -> Instant;

    /// The time of day, in ms since 1970.
    fn wall(&self) -> i64;

    /// Waits for so long.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// A number of at least 0 and below 1, by chance.
    fn dice(&self) -> f64;
}
