//! Times as NATS, the ledger and tasks carry them, and the clocks of a replica.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use taskpipeline_contract::Timestamp;
use tokio::time::Instant;

/// The time of the wall clock, in ms since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970. They fit into an `i64` until the year 2262.
pub(crate) fn nanos(time: time::OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

/// Converts nanoseconds since 1970 to the whole milliseconds of a task.
pub(crate) fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_unix_millis(nanos.div_euclid(1_000_000)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The clocks and random numbers of a replica: of the machine, or of a simulation.
pub(crate) trait Clock {
    /// The time of the monotonic clock, which is never set.
    fn now(&self) -> Instant;

    /// The time of the wall clock, in ms since 1970.
    fn wall(&self) -> i64;

    /// Waits for `time`.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// A random number in 0.0..1.0.
    fn dice(&self) -> f64;
}
