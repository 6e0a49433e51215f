//! The timestamps of tasks: times in UTC, with millisecond precision.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

use crate::RuleError;
use crate::text::{Checked, Quoted};

/// The form of every timestamp that this crate writes; `0` stands for any digit.
const FORM: &[u8; 24] = b"0000-00-00T00:00:00.000Z";

/// A time in UTC with millisecond precision, written as `2026-11-22T08:00:00.000Z`.
///
/// JavaScript's `toISOString` writes the same form, so values of the replaced system look the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// The start of 1970, for tests and as a placeholder.
    pub const UNIX_EPOCH: Self = Self(OffsetDateTime::UNIX_EPOCH);

    /// The time this many milliseconds after the start of 1970.
    ///
    /// # Errors
    /// If the year is not 0 to 9999: the format cannot write it.
    pub fn from_unix_millis(millis: i64) -> Result<Self, RuleError> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
            .map_err(|_| ())
            .and_then(|moment| Self::in_range(moment).ok_or(()))
            .map_err(|()| RuleError::new(format!("must be in the years 0 to 9999, got {millis} ms")))
    }

    /// Parses RFC 3339 with any offset. Truncates to milliseconds.
    ///
    /// # Errors
    /// If the text is not RFC 3339, or its year in UTC is not 0 to 9999.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        if let Some(moment) = Self::parse_own(text) {
            return Ok(moment);
        }
        OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|moment| Self::in_range(moment.to_offset(UtcOffset::UTC)))
            .ok_or_else(|| {
                RuleError::new(format!("must be a time like 2026-11-22T08:00:00.000Z, got {}", Quoted(text)))
            })
    }

    /// The milliseconds since the start of 1970.
    #[must_use]
    pub fn to_unix_millis(self) -> i64 {
        self.0.unix_timestamp() * 1_000 + i64::from(self.0.millisecond())
    }

    /// The time as a type of the `time` crate, for display in other formats.
    #[must_use]
    pub fn to_offset_date_time(self) -> OffsetDateTime {
        self.0
    }

    /// Parses the form that [`fmt::Display`] writes.
    ///
    /// This is ten times as fast as parsing all of RFC 3339. A record contains three timestamps, and is written and
    /// read several times for each event.
    fn parse_own(text: &str) -> Option<Self> {
        let text: &[u8; FORM.len()] = text.as_bytes().try_into().ok()?;
        let as_we_write =
            |(&is, &form): (&u8, &u8)| if form == b'0' { is.is_ascii_digit() } else { is == form };
        if !text.iter().zip(FORM).all(as_we_write) {
            return None;
        }
        let number = |from: usize, digits: usize| {
            let digits = text.iter().skip(from).take(digits);
            digits.fold(0_u16, |number, digit| number * 10 + u16::from(digit - b'0'))
        };
        let small = |from: usize| u8::try_from(number(from, 2)).ok();
        let date = Date::from_calendar_date(number(0, 4).into(), Month::try_from(small(5)?).ok()?, small(8)?);
        let time = Time::from_hms_milli(small(11)?, small(14)?, small(17)?, number(20, 3));
        Some(Self(OffsetDateTime::new_utc(date.ok()?, time.ok()?)))
    }

    fn in_range(moment: OffsetDateTime) -> Option<Self> {
        let whole = moment.replace_millisecond(moment.millisecond()).ok()?;
        (0..=9999).contains(&whole.year()).then_some(Self(whole))
    }
}

impl From<std::time::SystemTime> for Timestamp {
    /// A time outside the years 0 to 9999 comes from a wrong clock, and becomes [`Timestamp::UNIX_EPOCH`].
    fn from(moment: std::time::SystemTime) -> Self {
        Self::in_range(OffsetDateTime::from(moment)).unwrap_or(Self::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.0.to_calendar_date();
        let (hour, minute, second, millisecond) = self.0.to_hms_milli();
        let mut text = *FORM;
        let mut write = |from: usize, digits: usize, mut number: u16| {
            for place in text.iter_mut().skip(from).take(digits).rev() {
                *place = b'0' + u8::try_from(number % 10).unwrap_or_default();
                number /= 10;
            }
        };
        write(0, 4, u16::try_from(year).map_err(|_| fmt::Error)?);
        write(5, 2, u8::from(month).into());
        write(8, 2, day.into());
        write(11, 2, hour.into());
        write(14, 2, minute.into());
        write(17, 2, second.into());
        write(20, 3, millisecond);
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
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
        deserializer.deserialize_str(Checked(Self::parse))
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
    fn its_own_form_and_other_forms_parse_to_the_same_time() {
        for millis in
            [-62_167_219_200_000_i64, -1, 0, 951_782_400_001, 1_709_164_799_999, 253_402_300_799_999]
        {
            let moment = Timestamp::from_unix_millis(millis).unwrap();
            let text = moment.to_string();
            assert_eq!(Timestamp::parse_own(&text), Some(moment), "{text}");
            assert_eq!(Timestamp::parse(&text.replace('Z', "+00:00")), Ok(moment), "{text}");
        }
        for text in ["2026-02-30T00:00:00.000Z", "2026-11-22T24:00:00.000Z", "2026-11-22t08:00:00.000Z"] {
            assert_eq!(Timestamp::parse_own(text), None, "{text}");
        }
    }

    #[test]
    fn milliseconds_convert_to_a_timestamp_and_back() {
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
