//! Where NATS is, how the way to it is encrypted, and who we are to it: the variables `NATS_*`.

use std::fmt;
use std::path::PathBuf;

use async_nats::ServerAddr;
use secrecy::SecretString;

/// Where NATS is and who we are to it.
pub struct NatsConnection {
    /// One or more servers, from `NATS_URL`, separated by commas.
    pub servers: Vec<ServerAddr>,
    /// How to log in.
    pub auth: NatsAuth,
    /// How the connection is encrypted.
    pub tls: NatsTls,
    /// `NATS_INBOX_PREFIX`: where answers come, for servers that let each user see its own alone. Default: `_INBOX`.
    pub inbox_prefix: Option<String>,
}

/// How the connection is encrypted. Files are read at each connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// `NATS_CA`: a file with the certificate authority of the servers, where it is not a public one.
    pub ca: Option<PathBuf>,
    /// `NATS_CERT` and `NATS_KEY`: files with our certificate and its key, for servers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
    /// `NATS_TLS_FIRST`: TLS begins before the server says anything (its `handshake_first`).
    pub first: bool,
}

impl NatsConnection {
    /// Whether nothing may be sent that is not encrypted, to whichever server: one address of the list or one setting
    /// promises it.
    #[must_use]
    pub fn must_encrypt(&self) -> bool {
        self.tls != NatsTls::default()
            || self.servers.iter().any(|server| matches!(server.scheme(), "tls" | "wss"))
    }

    /// Whether the servers are reached by websockets.
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        self.servers.iter().any(ServerAddr::is_websocket)
    }
}

impl fmt::Debug for NatsConnection {
    /// Hosts and ports only: a URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NatsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> =
            self.servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
        f.write_str(&hosts.join(","))
    }
}

/// How to log in to NATS, beyond what the URL itself may hold. Files are read again at each connect, so that what rotates
/// in them takes effect.
#[derive(Debug)]
pub enum NatsAuth {
    /// Not at all, or by the URL or the certificate.
    None,
    /// `NATS_USER` and `NATS_PASSWORD`.
    UserAndPassword(String, SecretString),
    /// `NATS_TOKEN`.
    Token(SecretString),
    /// `NATS_TOKEN_FILE`: a file with a token.
    TokenFile(PathBuf),
    /// `NATS_CREDS`: a file with a JWT and its seed.
    CredentialsFile(PathBuf),
    /// `NATS_NKEY`: a file with the seed of an NKey.
    NkeyFile(PathBuf),
}

/// Why addresses with these schemes do not go together.
#[must_use]
pub fn scheme_fault<'a>(schemes: impl IntoIterator<Item = &'a str>) -> Option<&'static str> {
    let mut seen: Vec<_> = schemes.into_iter().collect();
    seen.sort_unstable();
    seen.dedup();
    let has = |scheme| seen.contains(&scheme);
    if has("ws") && has("wss") {
        return Some("must not have ws:// beside wss://, which promises encryption");
    }
    ((has("ws") || has("wss")) && (has("nats") || has("tls")))
        .then_some("must have either websockets (ws:// or wss://) or nats:// and tls:// only, not both")
}
