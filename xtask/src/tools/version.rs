//! Compares versions, as tools print them.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::run;

/// `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    /// The first version in a text, such as `nats-server: v2.15.2` or `v22.21.1`.
    pub(super) fn within(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let word = word.strip_prefix('v').unwrap_or(word);
            let mut numbers = word.split(['.', '-', '+']).map_while(|part| part.parse().ok());
            Some(Self(numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)))
        })
    }

    /// The version that a program prints for `--version`.
    pub(super) fn of(program: &Path) -> Option<Self> {
        Self::said(program, &["--version"])
    }

    /// The version that a program prints for these arguments.
    pub(super) fn said(program: &Path, arguments: &[&str]) -> Option<Self> {
        Self::within(&run::output(Command::new(program).args(arguments)).ok()?)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn reads_what_tools_print() {
        assert_eq!(Version::within("nats-server: v2.15.2"), Some(Version(2, 15, 2)));
        assert_eq!(Version::within("v22.21.1\n"), Some(Version(22, 21, 1)));
        assert_eq!(Version::within("wasm-bindgen 0.2.130"), Some(Version(0, 2, 130)));
        assert_eq!(Version::within("2.12.0-RC.1"), Some(Version(2, 12, 0)));
        assert_eq!(Version::within("1.31"), Some(Version(1, 31, 0)));
        assert_eq!(Version::within("no version in here"), None);
    }

    #[test]
    fn compares_by_number() {
        assert!(Version(2, 9, 20) < Version(2, 11, 0));
        assert!(Version(22, 12, 0) <= Version(22, 12, 0));
        assert!(Version(20, 20, 2) < Version(22, 12, 0));
    }
}
