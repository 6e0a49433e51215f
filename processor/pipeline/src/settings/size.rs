//! A size in bytes as Kubernetes writes it: `64Mi`, `8Gi`, `2Ti`.

use std::fmt;

const MEBIBYTE: u64 = 1 << 20;

/// The units with their bytes, the largest first.
const UNITS: [(&str, u64); 3] = [("Ti", MEBIBYTE << 20), ("Gi", MEBIBYTE << 10), ("Mi", MEBIBYTE)];

/// A whole number of mebibytes, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

/// The bytes that each stream may use on each server that keeps it; `None` if the setting is not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// The stream of events.
    pub events: Option<Size>,
    /// The ledger.
    pub ledger: Option<Size>,
    /// The dead letters.
    pub dead_letters: Option<Size>,
}

impl Size {
    /// `count` mebibytes.
    #[must_use]
    pub const fn mebibytes(count: u32) -> Self {
        Self(if count == 0 { MEBIBYTE } else { count as u64 * MEBIBYTE })
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The largest size that fits into `bytes`, and at least one mebibyte.
    #[must_use]
    pub fn within(bytes: u64) -> Self {
        Self((bytes / MEBIBYTE).max(1) * MEBIBYTE)
    }
}

/// The text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a size such as 64Mi, 8Gi or 2Ti, of at most six digits")]
pub struct SizeError;

impl std::str::FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)))
            .ok_or(SizeError)?;
        // At most six digits, so that the bytes of every size fit into an `u64`.
        let is_number = (1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|_| is_number && !digits.starts_with('0'));
        number.map(|number| Self(number * unit)).ok_or(SizeError)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) =
            UNITS.iter().find(|(_, bytes)| self.0.is_multiple_of(*bytes)).unwrap_or(&UNITS[2]);
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_as_kubernetes_does() {
        for (text, bytes, shown) in [
            ("1Mi", 1_u64 << 20, "1Mi"),
            ("64Mi", 64 << 20, "64Mi"),
            ("1024Mi", 1 << 30, "1Gi"),
            ("8Gi", 8 << 30, "8Gi"),
            ("1536Mi", 1_536 << 20, "1536Mi"),
            ("999999Ti", 999_999 << 40, "999999Ti"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, shown), "{text}");
        }
        for text in ["", "Mi", "0Mi", "01Mi", "+1Mi", "1", "1M", "1.5Gi", "1 Gi", "-1Gi", "1000000Mi", "1Ki"]
        {
            assert_eq!(text.parse::<Size>(), Err(SizeError), "{text}");
        }
    }

    #[test]
    fn what_is_within_so_many_bytes_is_whole_and_something() {
        assert_eq!(Size::within((5 << 20) + 7), Size::mebibytes(5));
        assert_eq!(Size::within(0), Size::mebibytes(1));
    }
}
