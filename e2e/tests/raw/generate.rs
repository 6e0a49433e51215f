//! Generates hostile requests, the same ones each time.

use std::fmt::Write;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// The mark in every part of every request that can contain it. No answer may repeat it unescaped.
pub const MARK: &str = "<mark-7f3>\"'";

/// A request and its expected properties.
pub struct Request {
    pub bytes: Vec<u8>,
    /// The unusual part of the request.
    pub kind: &'static str,
    pub method: String,
    /// Its correlation id, if the answer must return it.
    pub correlation: Option<String>,
}

const KINDS: [&str; 9] =
    ["id", "path", "query", "cursor", "bytes", "method", "headers", "correlation", "long"];

const METHODS: [&str; 6] = ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"];

/// workerd lets few of these pass. CONNECT is not among them: wrangler's own front end answers it with a 500.
const ODD_METHODS: [&str; 17] = [
    "PROPFIND",
    "SEARCH",
    "REPORT",
    "LOCK",
    "COPY",
    "PURGE",
    "MKCOL",
    "TRACE",
    "BREW",
    "get",
    "Get",
    "A",
    "G\u{e9}T",
    "GET<mark-7f3>",
    "GET\t",
    "__proto__",
    "GETGETGETGETGETGETGETGETGETGET",
];

/// Characters that have a meaning for a program on the way.
const PIECES: [&str; 44] = [
    "/",
    "//",
    "%2F",
    "%2f",
    "%5C",
    "\\",
    "..",
    "%2E%2e",
    ".",
    "%00",
    "%0D%0A",
    "%0a",
    "%",
    "%%",
    "%zz",
    "%2",
    "%FF",
    "%C3",
    "%C0%AF",
    "%ED%A0%80",
    "%F0%9F%98%80",
    "%E2%80%AE",
    "?",
    "&",
    "=",
    "+",
    "%20",
    ";",
    ":",
    "@",
    "'",
    "%22",
    "<",
    ">",
    "%3Cscript%3E",
    "{{7*7}}",
    "${7}",
    "~",
    "*",
    "tasks",
    "api",
    "__proto__",
    "constructor",
    "%EF%BB%BF",
];

const PLACES: [&str; 8] =
    ["/tasks/", "/api/tasks/", "/", "/api/", "/assets/", "/health", "/tasks", "/favicon.ico"];

/// The generator of the requests.
pub struct Requests {
    random: StdRng,
    host: String,
    made: usize,
}

impl Requests {
    /// Begins the same sequence each time, for this host.
    pub fn new(host: &str) -> Self {
        Self { random: StdRng::seed_from_u64(0x07f3), host: host.to_owned(), made: 0 }
    }

    fn one_of(&mut self, of: &[&'static str]) -> &'static str {
        of.choose(&mut self.random).copied().unwrap_or_default()
    }

    fn pieces(&mut self, most: usize) -> String {
        let count = self.random.random_range(0..=most);
        (0..count).map(|_| self.one_of(&PIECES)).collect()
    }

    /// The mark, half percent-encoded: a decoder finds all of it, and other programs find its rest.
    fn mark(&mut self) -> &'static str {
        self.one_of(&["%3Cmark-7f3%3E%22%27", "<mark-7f3>%22'", "%3cmark-7f3>\"%27", "%253Cmark-7f3%253E"])
    }

    fn list(&mut self) -> &'static str {
        self.one_of(&["/?", "/api/tasks?"])
    }

    fn task(&mut self) -> &'static str {
        self.one_of(&["/tasks/", "/api/tasks/"])
    }

    fn parameter(&mut self) -> String {
        let name = self.one_of(&[
            "status",
            "limit",
            "cursor",
            "LIMIT",
            "limit[]",
            "%6cimit",
            "",
            "callback",
            "__proto__",
        ]);
        let known = [
            "1",
            "1000",
            "0",
            "-1",
            "1e9",
            "0x10",
            "NaN",
            "99999999999999999999",
            "pending",
            "PENDING",
            "null",
        ];
        let value = match self.random.random_range(0..3) {
            0 => self.one_of(&known).to_owned(),
            1 => self.pieces(4) + self.mark(),
            _ => self.pieces(6),
        };
        format!("{name}={value}&")
    }

    /// Returns a text that is similar to a cursor of the local KV or of Cloudflare's.
    fn cursor(&mut self) -> String {
        let mut text = self
            .one_of(&["", "AAAA", "dGFza3M6", "eyJrIjoidGFza3M6In0", "tasks%3A", "%22", "0", "null"])
            .to_owned();
        let length = *[0, 1, 7, 64, 500, 2047, 2048, 2049, 9000].choose(&mut self.random).unwrap_or(&0);
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~";
        text.extend((0..length).map(|_| char::from(letters[self.random.random_range(0..letters.len())])));
        text + &self.pieces(2)
    }

    /// Returns any bytes that do not end the line, unless they are meant to.
    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = self.random.random_range(1..=most);
        let all = self.random.random_bool(0.1);
        (0..count)
            .map(|_| self.random.random_range(if all { 0..=255 } else { 0x21..=255_u8 }))
            .filter(|&byte| all || byte != 0x7f)
            .collect()
    }

    fn target(&mut self, kind: &str) -> Vec<u8> {
        let text = match kind {
            "id" => format!("{}{}{}{}", self.task(), self.pieces(5), self.mark(), self.pieces(3)),
            "path" => format!("{}{}{}{}", self.one_of(&PLACES), self.pieces(6), self.mark(), self.pieces(3)),
            "query" => {
                let count = self.random.random_range(1..6);
                let parameters: String = (0..count).map(|_| self.parameter()).collect();
                format!("{}{parameters}", self.list())
            }
            "cursor" => format!("{}cursor={}", self.list(), self.cursor()),
            "bytes" => {
                let place = [self.task(), self.list()][self.random.random_range(0..2)];
                return [place.as_bytes(), &self.bytes(40), MARK.replace('"', "").as_bytes()].concat();
            }
            "long" => {
                let length =
                    *[300, 2_000, 8_000, 16_000, 60_000, 70_000].choose(&mut self.random).unwrap_or(&300);
                let piece = self.one_of(&["a", "%41", "%F0%9F%98%80", "/", "..%2f", "?", "&limit=1"]);
                let place =
                    self.one_of(&["/tasks/", "/api/tasks/", "/?cursor=", "/api/tasks?status=", "/?x="]);
                format!("{place}{}{}", piece.repeat(length / piece.len()), self.mark())
            }
            _ => format!(
                "{}{}",
                self.one_of(&["/", "/tasks/task-1", "/api/tasks", "/nowhere/"]),
                self.pieces(1)
            ),
        };
        text.into_bytes()
    }

    fn headers(&mut self) -> Vec<u8> {
        let mut headers = Vec::new();
        for _ in 0..self.random.random_range(1..8) {
            let name = self.one_of(&[
                "Accept",
                "Accept-Encoding",
                "Range",
                "If-None-Match",
                "If-Modified-Since",
                "X-Forwarded-For",
                "X-Forwarded-Host",
                "X-Original-Url",
                "X-Rewrite-Url",
                "Referer",
                "Origin",
                "Cookie",
                "Authorization",
                "Content-Type",
                "CF-Connecting-IP",
                "X-HTTP-Method-Override",
                "Expect",
                "TE",
                "Upgrade",
                "X-Correlation-Id",
                "Accept-Language",
                "User-Agent",
                "Forwarded",
            ]);
            let value = match self.random.random_range(0..6) {
                0 => MARK.as_bytes().to_vec(),
                1 => self.bytes(60),
                2 => b"bytes=0-18446744073709551616,-1".to_vec(),
                3 => vec![b'x'; self.random.random_range(1..20_000)],
                4 => "../../etc/passwd\u{202e}é<mark-7f3>".into(),
                _ => Vec::new(),
            };
            headers.extend([name.as_bytes(), b": ", &value, b"\r\n"].concat());
        }
        headers
    }

    /// Returns a correlation id, and the id that the answer must return, if any.
    fn correlation(&mut self) -> (Vec<u8>, Option<String>) {
        let safe = ["a".to_owned(), "test-001".to_owned(), "x".repeat(128), "A_b.c=1-".to_owned()];
        if self.random.random_bool(0.3) {
            let id = safe[self.random.random_range(0..safe.len())].clone();
            return (format!("X-Correlation-Id: {id}\r\n").into_bytes(), Some(id));
        }
        let odd = match self.random.random_range(0..5) {
            0 => MARK.as_bytes().to_vec(),
            1 => vec![b'x'; self.random.random_range(129..5_000)],
            2 => b"one\r\nx-correlation-id: two".to_vec(),
            3 => self.bytes(30),
            _ => "é\u{202e}a b".into(),
        };
        ([b"X-Correlation-ID: ".as_slice(), &odd, b"\r\n"].concat(), None)
    }
}

/// Percent-encodes the parts that workerd would refuse before our Worker sees them.
fn passable(target: &[u8]) -> Vec<u8> {
    let mut passable = String::new();
    for part in target.utf8_chunks() {
        for c in part.valid().chars() {
            let refused = c.is_control() || " <>`^|".contains(c) || (c == '"' && passable.contains('?'));
            if refused { write_escaped(&mut passable, c.to_string().as_bytes()) } else { passable.push(c) }
        }
        write_escaped(&mut passable, part.invalid());
    }
    passable.into_bytes()
}

fn write_escaped(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "%{byte:02X}");
    }
}

impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let kind = KINDS[self.made % KINDS.len()];
        self.made += 1;
        let method = match kind {
            "method" if self.random.random_bool(0.25) => self.one_of(&ODD_METHODS),
            "method" => self.one_of(&METHODS),
            _ => "GET",
        };
        let mut target = self.target(kind);
        if self.random.random_bool(0.97) {
            target = passable(&target);
        }
        let (extra, correlation) = match kind {
            "headers" => (self.headers(), None),
            "correlation" => self.correlation(),
            _ => (format!("X-Mark: {MARK}\r\n").into_bytes(), None),
        };
        let host = format!("Host: {}\r\nConnection: close\r\n", self.host);
        // A request whose method may have a body gets one with a wrong type.
        let body = if kind == "method" {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{MARK}", MARK.len())
        } else {
            "\r\n".to_owned()
        };
        let bytes =
            [method.as_bytes(), b" ", &target, b" HTTP/1.1\r\n", host.as_bytes(), &extra, body.as_bytes()]
                .concat();
        Some(Request { bytes, kind, method: method.to_owned(), correlation })
    }
}
