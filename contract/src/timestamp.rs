//! A moment in UTC, to the millisecond, as tasks carry it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::RuleError;
use crate::text::Quoted;

/// A moment in UTC with millisecond precision, written `2026-11-22T08:00:00.000Z` (what JavaScript's
/// `toISOString` writes, so that values of the replaced system and ours look alike).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// The start of 1970, for tests and as a stand-in.
    pub const UNIX_EPOCH: Self = Self(OffsetDateTime::UNIX_EPOCH);

    /// A moment by its milliseconds since the start of 1970.
    ///
    /// # Errors
    /// Where the year is not within 0 to 9999, which the format cannot write.
    pub fn from_unix_millis(millis: i64) -> Result<Self, RuleError> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
            .map_err(|_| ())
            .and_then(|moment| Self::in_range(moment).ok_or(()))
            .map_err(|()| RuleError::new(format!("must be in the years 0 to 9999, got {millis} ms")))
    }

    /// Reads RFC 3339, with any offset; what is finer than a millisecond is cut off.
    ///
    /// # Errors
    /// Where the text is not a date and time of that form.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|moment| Self::in_range(moment.to_offset(UtcOffset::UTC)))
            .ok_or_else(|| {
                RuleError::new(format!("must be a time like 2026-11-22T08:00:00.000Z, got {}", Quoted(text)))
            })
    }

    /// Its milliseconds since the start of 1970.
    #[must_use]
    pub fn to_unix_millis(self) -> i64 {
        self.0.unix_timestamp() * 1_000 + i64::from(self.0.millisecond())
    }

    /// The moment as the `time` crate has it, for display in other formats.
    #[must_use]
    pub fn to_offset_date_time(self) -> OffsetDateTime {
        self.0
    }

    fn in_range(moment: OffsetDateTime) -> Option<Self> {
        let whole = moment.replace_millisecond(moment.millisecond()).ok()?;
        (0..=9999).contains(&whole.year()).then_some(Self(whole))
    }
}

impl From<std::time::SystemTime> for Timestamp {
    /// A clock outside the years 0 to 9999 is wrong; its tasks are stamped with the epoch.
    fn from(moment: std::time::SystemTime) -> Self {
        Self::in_range(OffsetDateTime::from(moment)).unwrap_or(Self::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        f.write_str(&self.0.format(format).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_three_digits_of_milliseconds() {
        assert_eq!(Timestamp::from_unix_millis(1_000).unwrap().to_string(), "1970-01-01T00:00:01.000Z");
        assert_eq!(
            Timestamp::parse("2026-11-22T09:00:00.1239+01:00").unwrap().to_string(),
            "2026-11-22T08:00:00.123Z"
        );
    }

    #[test]
    fn milliseconds_come_back() {
        for millis in [-1, 0, 1, 1_700_000_000_123] {
            assert_eq!(Timestamp::from_unix_millis(millis).unwrap().to_unix_millis(), millis);
        }
    }

    #[test]
    fn refuses_what_is_not_a_time() {
        for text in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-11-22"] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
        assert!(Timestamp::from_unix_millis(i64::MAX).is_err());
    }
}
