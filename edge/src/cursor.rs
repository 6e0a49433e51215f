//! Where the next page of a list begins: a place in KV's list, and what of it was shown already. KV's own cursors
//! point between list calls only, and a list call always asks for more keys than a small page has.

use std::fmt;

use taskpipeline_contract::KEY_PREFIX;

use crate::links;

/// The longest cursor that is passed on to KV, and the longest key of KV, percent-encoded.
const MAX_PAGE: usize = 2048;
const MAX_AFTER: usize = 3 * 512;

/// Between the two parts. The second has none, for it is encoded.
const SEPARATOR: char = '~';

/// The place in KV's list where the next page begins, and how many keys there were already shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// What KV gave; nothing at the beginning.
    pub(crate) page: Option<String>,
    /// The last key that was shown of what comes there.
    pub(crate) after: Option<String>,
}

impl Cursor {
    /// Reads one that an earlier list gave; nothing where it is none.
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

    /// Whether this key was shown already.
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

/// The problem of a cursor that no list gave.
pub(crate) const UNKNOWN_CURSOR: &str = "must be a cursor that an earlier list gave";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_that_was_given_is_read_as_it_was(
            page in proptest::option::of("[!-~]{1,80}"),
            after in proptest::option::of("\\PC{1,60}"),
        ) {
            let cursor = Cursor { page, after: after.map(|id| format!("{KEY_PREFIX}{id}")) };
            prop_assume!(cursor != Cursor::default());
            prop_assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        }
    }

    #[test]
    fn what_no_list_gave_is_none() {
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
