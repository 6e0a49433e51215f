//! Moments as NATS, the ledger and tasks carry them.

use std::time::{SystemTime, UNIX_EPOCH};

use taskpipeline_contract::Timestamp;

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
