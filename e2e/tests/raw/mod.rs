//! HTTP/1.1 byte by byte: requests that no client would send, and their answers.
#![allow(unreachable_pub)]

pub mod generate;

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer as received.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// The values of a header.
    pub fn all<'a>(&'a self, name: &str) -> Vec<&'a str> {
        let named = self.headers.iter().filter(|(other, _)| other == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that occurs once; empty otherwise.
    pub fn header<'a>(&'a self, name: &str) -> &'a str {
        match self.all(name)[..] {
            [value] => value,
            _ => "",
        }
    }

    /// Whether our Worker sent the answer: nothing else in wrangler or workerd sets this header.
    pub fn is_ours(&self) -> bool {
        !self.all("content-security-policy").is_empty() && !self.all("permissions-policy").is_empty()
    }
}

/// Sends these bytes, and reads until the connection is closed.
pub async fn exchange(port: u16, request: &[u8]) -> anyhow::Result<Answer> {
    let bytes = tokio::time::timeout(PATIENCE, async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        // The other side may answer and close before it has read everything.
        let sent = stream.write_all(request).await;
        let mut bytes = Vec::new();
        let received = stream.read_to_end(&mut bytes).await;
        ensure!(!bytes.is_empty(), "no answer: sent {sent:?}, received {received:?}");
        Ok(bytes)
    })
    .await
    .context("the answer does not end")??;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> anyhow::Result<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("the headers do not end")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer =
        Answer { status: status.context("the answer has no status")?, headers, body: String::new() };
    let body = &bytes[end + 4..];
    let body = if answer.header("transfer-encoding") == "chunked" { unchunked(body)? } else { body.to_vec() };
    answer.body = String::from_utf8(body).context("the body is not UTF-8")?;
    Ok(answer)
}

fn unchunked(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    // An answer to HEAD may be declared as chunked and have no body.
    while !rest.is_empty() {
        let line = rest.windows(2).position(|two| two == b"\r\n").context("a chunk has no size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        if size == 0 {
            break;
        }
        body.extend(rest.get(line + 2..line + 2 + size).context("a chunk is cut off")?);
        rest = rest.get(line + 2 + size + 2..).context("a chunk has no end")?;
    }
    Ok(body)
}
