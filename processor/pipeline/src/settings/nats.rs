//! The address of NATS, the encryption and the login: the variables `NATS_*`.

use std::fmt;
use std::path::PathBuf;

use async_nats::ServerAddr;
use secrecy::SecretString;

/// The address of NATS, with the encryption and the login.
pub struct NatsConnection {
    /// One or more servers, from `NATS_URL`, separated by commas.
    pub servers: Vec<ServerAddr>,
    /// How to log in.
    pub auth: NatsAuth,
    /// How the connection is encrypted.
    pub tls: NatsTls,
    /// `NATS_INBOX_PREFIX`: the subject prefix of answers, for servers that let each user see only
    /// its own. Default: `_INBOX`.
    pub inbox_prefix: Option<String>,
}

/// The encryption of the connection. The files are read at each connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// `NATS_CA`: a file with the certificate authority of the servers, if it is not a public one.
    pub ca: Option<PathBuf>,
    /// `NATS_CERT` and `NATS_KEY`: files with the client certificate and its key, for servers that
    /// request one.
    pub client: Option<(PathBuf, PathBuf)>,
    /// `NATS_TLS_FIRST`: TLS begins before the server sends anything (its `handshake_first`).
    pub first: bool,
}

impl NatsConnection {
    /// Returns whether the connection must be encrypted to every server.
    ///
    /// One address of the list, or one setting, is enough.
    #[must_use]
    pub fn must_encrypt(&self) -> bool {
        self.tls != NatsTls::default()
            || self.servers.iter().any(|server| matches!(server.scheme(), "tls" | "wss"))
    }

    /// Returns whether the servers are reached over websockets.
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        self.servers.iter().any(ServerAddr::is_websocket)
    }
}

impl fmt::Debug for NatsConnection {
    /// Shows only hosts and ports: a URL may contain a password.
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

/// The login to NATS, in addition to a login in the URL.
///
/// The files are read at each connect, so that rotated secrets take effect.
#[derive(Debug)]
pub enum NatsAuth {
    /// Without a login, or with the login of the URL or the certificate.
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

/// Why addresses with these schemes cannot be used together, or `None` if they can.
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
