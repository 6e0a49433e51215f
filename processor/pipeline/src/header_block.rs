//! Reads the headers of a message as NATS stores them, as strictly as the NATS client does. Pure.
//!
//! The server stores any bytes. The client treats invalid headers as a broken connection, or as a
//! message of the server.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::str::FromStr;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, IntoHeaderValue};

/// The first line of every header block.
const VERSION: &str = "NATS/1.0";

/// Why the client cannot read a message with these headers. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderFault {
    #[error("its headers are not UTF-8 (byte {0})")]
    NotText(usize),
    #[error("its headers do not begin with `{VERSION}`")]
    Version,
    /// Only servers send a status. The client treats such a message as an answer to its pull.
    #[error("its headers begin with a status, which only a server may send")]
    Status,
    #[error("line {0} of its headers has no colon")]
    NoColon(usize),
    #[error("the header name in line {0} has invalid characters")]
    Name(usize),
}

/// Reads a header block.
pub(super) fn read(block: &[u8]) -> Result<HeaderMap, HeaderFault> {
    let text = std::str::from_utf8(block).map_err(|error| HeaderFault::NotText(error.valid_up_to() + 1))?;
    let mut lines = (1..).zip(text.lines()).peekable();
    let version =
        lines.next().and_then(|(_, line)| line.strip_prefix(VERSION)).ok_or(HeaderFault::Version)?;
    // The client accepts a message with status 200 as an event.
    if !matches!(version.split_whitespace().next(), None | Some("200")) {
        return Err(HeaderFault::Status);
    }
    let mut headers = HeaderMap::new();
    while let Some((number, line)) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or(HeaderFault::NoColon(number))?;
        let name = HeaderName::from_str(name).map_err(|_| HeaderFault::Name(number))?;
        let mut value = value.trim_start().to_owned();
        while let Some((_, more)) = lines.next_if(|(_, line)| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        value.truncate(value.trim_end().len());
        headers.append(name, value.into_header_value());
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(block: &str) -> Result<Vec<(String, String)>, HeaderFault> {
        super::read(block.as_bytes()).map(|headers| {
            let all = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
            let mut all: Vec<_> = all.map(|(name, value)| (name.to_string(), value.to_string())).collect();
            all.sort();
            all
        })
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn what_the_client_takes_is_read() {
        assert_eq!(read("NATS/1.0\r\n\r\n"), Ok(Vec::new()));
        let several = "NATS/1.0\r\nNats-Msg-Id:1\r\nA:  b \r\n  c\r\nA: é\r\nEmpty:\r\n\r\n";
        let expected = [pair("A", "b   c"), pair("A", "é"), pair("Empty", ""), pair("Nats-Msg-Id", "1")];
        assert_eq!(read(several), Ok(expected.to_vec()));
        assert_eq!(read("NATS/1.0 200\r\n\r\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_cuts_the_connection_or_ends_a_pull_is_named() {
        assert_eq!(super::read(b"NATS/1.0\r\nX: M\xfcller\r\n\r\n"), Err(HeaderFault::NotText(15)));
        assert_eq!(super::read(b""), Err(HeaderFault::Version));
        assert_eq!(read("NATS/2.0\r\n\r\n"), Err(HeaderFault::Version));
        for status in ["100 Idle Heartbeat", "404", "408 Request Timeout", "409 Consumer Deleted", "x"] {
            assert_eq!(read(&format!("NATS/1.0 {status}\r\n\r\n")), Err(HeaderFault::Status), "{status}");
        }
        assert_eq!(read("NATS/1.0\r\nA: b\r\nno colon\r\n\r\n"), Err(HeaderFault::NoColon(3)));
        assert_eq!(read("NATS/1.0\r\na b: c\r\n\r\n"), Err(HeaderFault::Name(2)));
        assert_eq!(read("NATS/1.0\r\n: c\r\n\r\n"), Ok(vec![pair("", "c")]), "as the client has it");
    }
}
