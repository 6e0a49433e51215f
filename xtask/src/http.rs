//! A minimal client that waits for a server on this machine over HTTP or TCP.
//!
//! It reads the loopback interface and the status line only; anything more belongs to a real client.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);

fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// The first line that a server sends by itself (NATS begins with `INFO`).
pub(crate) fn greeting(port: u16) -> Option<String> {
    let mut line = String::new();
    BufReader::new(connect(port)?).read_line(&mut line).ok()?;
    Some(line)
}

/// The status of the response to `GET path` on a port of this machine; `None` if no server answers.
pub(crate) fn status(port: u16, path: &str) -> Option<u16> {
    let mut stream = connect(port)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    status_of(&line)
}

fn status_of(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/")?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::status_of;

    #[test]
    fn reads_the_status_line() {
        assert_eq!(status_of("HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status_of("HTTP/1.1 503 Service Unavailable\r\n"), Some(503));
        assert_eq!(status_of("INFO {}\r\n"), None);
        assert_eq!(status_of(""), None);
    }
}
