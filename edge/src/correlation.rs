//! The correlation id of a request, in headers, error bodies and logs.
//!
//! The edge keeps a visitor's id only if every character is safe in all three. Otherwise it generates a new id.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-correlation-id");

/// A correlation id: 1 to 128 characters of `[A-Za-z0-9._=-]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Correlation(Arc<str>);

impl Correlation {
    /// The id in the request's headers, if there is exactly one and it is safe; otherwise a new id.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(HEADER).iter();
        match (values.next().and_then(safe), values.next()) {
            (Some(id), None) => Self(id.into()),
            _ => Self::generate(),
        }
    }

    /// A new random UUID.
    pub(crate) fn generate() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn safe(value: &HeaderValue) -> Option<&str> {
    let id = value.to_str().ok()?;
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'=' | b'-');
    ((1..=128).contains(&id.len()) && id.bytes().all(safe)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Correlation::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_safe_id_is_kept() {
        let longest = "x".repeat(128);
        for id in ["test-001", "a", "A_b.c=1-", longest.as_str()] {
            assert_eq!(of(&[id]), id);
        }
    }

    #[test]
    fn an_unsafe_or_repeated_id_is_replaced_by_a_new_uuid() {
        let too_long = "x".repeat(129);
        let cases: [&[&str]; 8] =
            [&[], &[""], &["a b"], &["<b>"], &["é"], &["a,b"], &[too_long.as_str()], &["one", "two"]];
        for case in cases {
            let id = of(case);
            assert_eq!(Uuid::parse_str(&id).unwrap().get_version_num(), 4, "{case:?} gave {id}");
        }
        assert_ne!(of(&[]), of(&[]));
    }
}
