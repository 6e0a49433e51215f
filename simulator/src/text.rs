//! A string of a JSON body, taken straight to where it is kept: serde's own way to a `Box<str>` copies it
//! once more.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// The string, kept as a `T`.
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
    fn it_is_the_string_with_its_escapes_resolved() {
        let parsed = serde_json::from_str::<Vec<Text<Box<str>>>>(r#"["a\n\"é\u00e9", ""]"#).unwrap();
        let texts: Vec<_> = parsed.iter().map(|text| &*text.0).collect();
        assert_eq!(texts, ["a\n\"éé", ""]);
        let error = serde_json::from_str::<Text<Box<str>>>("7").unwrap_err();
        assert!(error.to_string().contains("expected a string"), "{error}");
    }
}
