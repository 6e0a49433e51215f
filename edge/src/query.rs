//! The query of a list: `status`, `limit` and `cursor`. Parses the raw query, and renders links.
//!
//! An invalid or repeated parameter is a fault. An empty parameter counts as absent. Unknown parameters are
//! ignored. A fault names the rule and never repeats the input.

use std::borrow::Cow;

use taskpipeline_contract::Status;

use crate::cursor::{Cursor, UNKNOWN_CURSOR};
use crate::errors::Fault;
use crate::links;
use crate::reader::MAX_LIST_KEYS;

/// A request for a list of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListQuery {
    pub(crate) status: Option<Status>,
    pub(crate) limit: usize,
    pub(crate) cursor: Option<Cursor>,
    /// The limit of a query without one. Links omit this limit.
    default_limit: usize,
}

impl ListQuery {
    /// Parses the part of a URL after the `?`.
    ///
    /// # Errors
    /// All invalid parameters.
    pub(crate) fn parse(query: &str, default_limit: usize) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let read = Self {
            status: parameter(query, "status", status, &mut faults),
            limit: parameter(query, "limit", limit, &mut faults).unwrap_or(default_limit),
            cursor: parameter(query, "cursor", cursor, &mut faults),
            default_limit,
        };
        if faults.is_empty() { Ok(read) } else { Err(faults) }
    }

    /// The first page of the list with another status.
    pub(crate) fn of_status(&self, status: Option<Status>) -> Self {
        Self { status, cursor: None, ..self.clone() }
    }

    /// The page of the same list at this cursor.
    pub(crate) fn at_cursor(&self, cursor: Cursor) -> Self {
        Self { cursor: Some(cursor), ..self.clone() }
    }

    /// The link to this list at `path`.
    pub(crate) fn link(&self, path: &str) -> String {
        let limit = (self.limit != self.default_limit).then(|| self.limit.to_string());
        let parameters = [
            ("status", self.status.map(|status| Cow::Borrowed(status.as_str()))),
            ("limit", limit.map(Cow::Owned)),
            ("cursor", self.cursor.as_ref().map(|cursor| Cow::Owned(cursor.to_string()))),
        ];
        let pairs: Vec<String> = parameters
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", links::encode(&value?))))
            .collect();
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }
}

fn parameter<T>(
    query: &str,
    name: &'static str,
    check: fn(&str) -> Result<T, String>,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let mut values = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(key, value)| !value.is_empty() && decode(key).is_ok_and(|key| key == name))
        .map(|(_, value)| value);
    let value = values.next()?;
    let checked = match values.next() {
        Some(_) => Err("must be given once".to_owned()),
        None => decode(value).map_err(|error| error.to_string()).and_then(|value| check(&value)),
    };
    checked.map_err(|problem| faults.push(Fault { field: name, problem })).ok()
}

/// Decodes as HTML forms encode: a `+` is a space.
fn decode(text: &str) -> Result<String, links::DecodeError> {
    links::decode(&text.replace('+', "%20"))
}

fn status(text: &str) -> Result<Status, String> {
    text.parse().map_err(|_| format!("must be one of {}", Status::ALL.map(Status::as_str).join(", ")))
}

fn limit(text: &str) -> Result<usize, String> {
    // `parse` alone would accept a leading `+`.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && (1..=MAX_LIST_KEYS).contains(number));
    number.ok_or_else(|| format!("must be a whole number from 1 to {MAX_LIST_KEYS}"))
}

fn cursor(text: &str) -> Result<Cursor, String> {
    Cursor::parse(text).ok_or_else(|| UNKNOWN_CURSOR.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<ListQuery, Vec<&'static str>> {
        ListQuery::parse(query, 50).map_err(|faults| faults.into_iter().map(|fault| fault.field).collect())
    }

    #[test]
    fn without_parameters_a_list_has_all_tasks_and_the_default_limit() {
        for query in ["", "status=&limit=&cursor=", "other=1", "&&", "limit"] {
            let read = parse(query).unwrap();
            assert_eq!((read.status, read.limit, read.cursor), (None, 50, None), "{query}");
        }
    }

    #[test]
    fn all_invalid_parameters_are_listed() {
        assert_eq!(parse("cursor=%00&limit=0&status=done"), Err(vec!["status", "limit", "cursor"]));
    }

    #[test]
    fn a_limit_is_a_plain_number_from_1_to_1000() {
        for good in ["1", "1000", "007"] {
            assert!(parse(&format!("limit={good}")).is_ok(), "{good}");
        }
        for bad in ["0", "1001", "-1", "%2B5", "1.0", "1e2", "ten", "99999999999999999999", "%31%"] {
            assert_eq!(parse(&format!("limit={bad}")), Err(vec!["limit"]), "{bad}");
        }
    }

    #[test]
    fn a_repeated_parameter_is_a_fault_even_if_both_values_agree() {
        assert_eq!(parse("limit=5&limit=5"), Err(vec!["limit"]));
        assert_eq!(parse("%6cimit=5&limit=5"), Err(vec!["limit"]));
    }

    #[test]
    fn a_fault_does_not_repeat_the_input() {
        let faults = ListQuery::parse("status=zebra&limit=zebra&cursor=zebra%20", 50).unwrap_err();
        assert_eq!(faults.len(), 3);
        assert!(faults.iter().all(|fault| !fault.problem.contains("zebra")), "{faults:?}");
    }

    #[test]
    fn a_link_parses_to_the_same_list() {
        for query in ["", "status=in_progress", "limit=7&cursor=a%2Fb%3D%26%2B", "status=pending&limit=1000"]
        {
            let read = parse(query).unwrap();
            let link = read.link("/");
            let again = parse(link.split_once('?').map_or("", |(_, query)| query)).unwrap();
            assert_eq!(again, read, "{link}");
        }
    }
}
