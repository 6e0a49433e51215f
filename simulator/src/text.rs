//! Deserializes a JSON string into its final type with one copy. serde's `Box<str>` needs one copy more.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A string, stored as a `T`.
#[derive(Debug)]
pub(crate) struct Text<T>(pub(crate) T);

impl<'de, T: for<'a> From<&'a str>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Keep(PhantomData))
    }
}

struct Keep<T>(PhantomData<T>);

impl<T: for<'a> From<&'a str>> Visitor<'_> for Keep<T> {
    type Value = Text<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
        Ok(Text(T::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_resolved() {
        let parsed = serde_json::from_str::<Vec<Text<Box<str>>>>(r#"["a\n\"é\u00e9", ""]"#).unwrap();
        let texts: Vec<_> = parsed.iter().map(|text| &*text.0).collect();
        assert_eq!(texts, ["a\n\"éé", ""]);
        let error = serde_json::from_str::<Text<Box<str>>>("7").unwrap_err();
        assert!(error.to_string().contains("expected a string"), "{error}");
    }
}
