//! Texts with a rule: the macro for all string newtypes, and the error of a broken rule.

use std::fmt;

/// The rule that a text breaks, as the end of a sentence: `must be 1 to 200 characters, got 0`.
///
/// Safe to log: quoted input is escaped and cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RuleError(String);

impl RuleError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Formats input so that it is safe to print: quoted, escaped, and cut after 40 characters.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 40;
        let shown: String = self.0.chars().take(MOST).collect();
        write!(f, "{shown:?}")?;
        if shown.len() < self.0.len() { f.write_str("...") } else { Ok(()) }
    }
}

/// Checks a length. The error is `must be {least} to {most} {unit}, got {length}`.
pub(crate) fn check_length(length: usize, least: usize, most: usize, unit: &str) -> Result<(), RuleError> {
    if (least..=most).contains(&length) {
        return Ok(());
    }
    let range = if least == 0 { format!("at most {most}") } else { format!("{least} to {most}") };
    Err(RuleError::new(format!("must be {range} {unit}, got {length}")))
}

pub(crate) fn check_no_control(text: &str) -> Result<(), RuleError> {
    match text.chars().find(|c| c.is_control()) {
        None => Ok(()),
        Some(c) => {
            Err(RuleError::new(format!("must have no control characters, got U+{:04X}", u32::from(c))))
        }
    }
}

/// Defines a string newtype whose values always pass `check`. A value serializes as a string.
///
/// Clones share the text, because ids pass through several queues.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(#[serde(serialize_with = "crate::text::as_str")] std::sync::Arc<str>);

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// If the text breaks a rule. The error names the rule.
            pub fn new(text: impl AsRef<str>) -> Result<Self, $crate::RuleError> {
                let text = text.as_ref();
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::RuleError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str($crate::text::Checked(|text| Self::new(text)))
            }
        }
    };
}
pub(crate) use checked_text;

pub(crate) fn as_str<S: serde::Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Deserializes a checked text from a borrowed string, without another copy.
pub(crate) struct Checked<T>(pub(crate) fn(&str) -> Result<T, RuleError>);

impl<T> serde::de::Visitor<'_> for Checked<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_escaped_and_cut() {
        assert_eq!(Quoted("a\n\u{202e}b").to_string(), r#""a\n\u{202e}b""#);
        assert_eq!(Quoted(&"x".repeat(41)).to_string(), format!("\"{}\"...", "x".repeat(40)));
    }
}
