//! The URLs of the edge: encodes ids and cursors, and decodes ids.
//!
//! An id may contain any character, `/` and `%` included. So everything but unreserved characters is
//! percent-encoded. This module decodes a raw path strictly.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use taskpipeline_contract::TaskId;

/// All characters that RFC 3986 does not call unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(crate) const PAGE_PREFIX: &str = "/tasks/";
pub(crate) const API_PREFIX: &str = "/api/tasks/";

/// The reason why a text is not percent-encoded UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("must be percent-encoded: two hexadecimal digits follow each %")]
    BadEscape,
    #[error("must be UTF-8 after percent-decoding")]
    NotUtf8,
}

/// The path of a task's page.
pub(crate) fn task_page(id: &TaskId) -> String {
    format!("{PAGE_PREFIX}{}", encode(id.as_str()))
}

/// The path of a task's JSON.
pub(crate) fn task_json(id: &TaskId) -> String {
    format!("{API_PREFIX}{}", encode(id.as_str()))
}

/// Percent-encodes all reserved characters.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Decodes percent-encoded UTF-8. Refuses broken escapes.
pub(crate) fn decode(text: &str) -> Result<String, DecodeError> {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let digits = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
        if byte == b'%' && !(digits(bytes.next()) && digits(bytes.next())) {
            return Err(DecodeError::BadEscape);
        }
    }
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| DecodeError::NotUtf8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_broken_escape_is_refused_at_any_position() {
        for text in ["%", "a%", "%2", "%zz", "%2x", "ok%41%", "%%41"] {
            assert_eq!(decode(text), Err(DecodeError::BadEscape), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        assert_eq!(decode("%ff"), Err(DecodeError::NotUtf8));
        assert_eq!(decode("%c3"), Err(DecodeError::NotUtf8));
    }

    #[test]
    fn reserved_characters_are_encoded_in_a_path() {
        let id = TaskId::new("a/b?c#d%\"'<& é").unwrap();
        assert_eq!(task_page(&id), "/tasks/a%2Fb%3Fc%23d%25%22%27%3C%26%20%C3%A9");
    }

    proptest! {
        #[test]
        fn an_encoded_text_decodes_to_itself(text in any::<String>()) {
            prop_assert_eq!(decode(&encode(&text)), Ok(text));
        }
    }
}
