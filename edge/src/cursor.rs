//! The cursor of the edge: the start of a list's next page.
//!
//! KV's own cursors point between list calls only, and a list call returns more keys than a small page shows.
//! So a cursor of the edge combines KV's cursor with the last key that is already shown.

use std::fmt;

use taskpipeline_contract::KEY_PREFIX;

use crate::links;

/// The longest cursor of KV that the edge passes on, in bytes.
const MAX_PAGE: usize = 2048;

/// The longest key of KV, percent-encoded, in bytes.
const MAX_AFTER: usize = 3 * 512;

/// Separates the two parts. Encoding keeps this character out of the second part.
const SEPARATOR: char = '~';

/// The position in KV's list where the next page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The cursor of KV; `None` at the start of the list.
    pub(crate) page: Option<String>,
    /// The last key after KV's cursor that is already shown.
    pub(crate) after: Option<String>,
}

impl Cursor {
    /// Parses the cursor of an earlier list; `None` if the text cannot be such a cursor.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let (page, after) = text.rsplit_once(SEPARATOR).unwrap_or((text, ""));
        let is_known =
            page.len() <= MAX_PAGE && after.len() <= MAX_AFTER && !(page.is_empty() && after.is_empty());
        let after = (!after.is_empty()).then(|| links::decode(after)).transpose().ok()?;
        is_known.then(|| Self {
            page: (!page.is_empty()).then(|| page.to_owned()),
            after: after.map(|id| format!("{KEY_PREFIX}{id}")),
        })
    }

    /// Whether an earlier page already shows this key.
    pub(crate) fn is_past(&self, key: &str) -> bool {
        self.after.as_deref().is_some_and(|after| key <= after)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = self.page.as_deref().unwrap_or_default();
        formatter.write_str(page)?;
        match &self.after {
            Some(after) => {
                let id = after.strip_prefix(KEY_PREFIX).unwrap_or(after);
                write!(formatter, "{SEPARATOR}{}", links::encode(id).replace(SEPARATOR, "%7E"))
            }
            None if page.contains(SEPARATOR) => write!(formatter, "{SEPARATOR}"),
            None => Ok(()),
        }
    }
}

/// The problem that a [`Fault`](crate::errors::Fault) names for an unknown cursor.
pub(crate) const UNKNOWN_CURSOR: &str = "must be a cursor from an earlier list";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_displayed_cursor_parses_to_itself(
            page in proptest::option::of("[!-~]{1,80}"),
            after in proptest::option::of("\\PC{1,60}"),
        ) {
            let cursor = Cursor { page, after: after.map(|id| format!("{KEY_PREFIX}{id}")) };
            prop_assume!(cursor != Cursor::default());
            prop_assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        }
    }

    #[test]
    fn a_text_that_is_not_a_cursor_is_refused() {
        let long = "a".repeat(MAX_PAGE + 1);
        for text in ["", "~", "a b", "\u{e9}", "a~%2", "a~%ff", &long] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }

    #[test]
    fn keys_up_to_the_last_one_shown_are_past() {
        let cursor = Cursor { page: None, after: Some("tasks:b".to_owned()) };
        let past: Vec<_> = ["tasks:a", "tasks:b", "tasks:ba"].map(|key| cursor.is_past(key)).to_vec();
        assert_eq!(past, [true, true, false]);
        assert!(!Cursor::default().is_past("tasks:a"));
    }
}
