//! Reads the address of NATS, the encryption and the login: the variables `NATS_*`.

use std::path::{Path, PathBuf};

use async_nats::ServerAddr;

use super::super::login;
use super::super::nats::{NatsAuth, NatsConnection, NatsTls, scheme_fault};
use super::super::{SUBJECT_RULE, is_subject};
use super::Environment;

impl Environment<'_> {
    pub(super) fn connection(&mut self, default: Option<&str>) -> NatsConnection {
        let servers = self.servers(default);
        NatsConnection {
            tls: self.nats_tls(&servers),
            servers,
            auth: self.nats_auth(),
            inbox_prefix: self.inbox_prefix(),
        }
    }

    fn inbox_prefix(&mut self) -> Option<String> {
        let prefix = self.text("NATS_INBOX_PREFIX")?;
        if !is_subject(&prefix) {
            self.problem("NATS_INBOX_PREFIX", SUBJECT_RULE);
        }
        Some(prefix)
    }

    fn servers(&mut self, default: Option<&str>) -> Vec<ServerAddr> {
        let urls = match (self.text("NATS_URL"), default) {
            (Some(urls), _) => urls,
            (None, Some(default)) => default.to_owned(),
            (None, None) => {
                self.required("NATS_URL", "one or more addresses such as nats://127.0.0.1:4222");
                return Vec::new();
            }
        };
        let mut servers: Vec<ServerAddr> = Vec::new();
        for url in urls.split(',').map(str::trim) {
            match url.parse() {
                Ok(server) => servers.push(server),
                // The text is not shown: it may contain a password.
                Err(_) => {
                    self.problem(
                        "NATS_URL",
                        "must be addresses such as nats://host:4222, tls://host, ws://host:8080 or wss://host",
                    );
                }
            }
        }
        if let Some(fault) = scheme_fault(servers.iter().map(ServerAddr::scheme)) {
            self.problem("NATS_URL", fault);
        }
        servers
    }

    fn nats_tls(&mut self, servers: &[ServerAddr]) -> NatsTls {
        let file = |env: &Self, name: &str| env.text(name).map(PathBuf::from);
        let client = match (file(self, "NATS_CERT"), file(self, "NATS_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                self.problem("NATS_CERT", "must be set together with NATS_KEY: set both or none");
                None
            }
        };
        let first = self.parsed("NATS_TLS_FIRST", "true or false", false);
        let tls = NatsTls { ca: file(self, "NATS_CA"), client, first };
        let pair = tls.client.as_ref();
        for (name, file) in [
            ("NATS_CA", tls.ca.as_ref()),
            ("NATS_CERT", pair.map(|(certificate, _)| certificate)),
            ("NATS_KEY", pair.map(|(_, key)| key)),
        ] {
            if let Some(file) = file
                && let Err(error) = std::fs::File::open(file)
            {
                self.problem(name, format!("cannot read the file {}: {error}", shown(file)));
            }
        }
        let is = |scheme| servers.iter().any(|server| server.scheme() == scheme);
        if is("ws") && tls != NatsTls::default() {
            self.problem(
                "NATS_URL",
                "has ws://, which is never encrypted, so NATS_CA, NATS_CERT, NATS_KEY and NATS_TLS_FIRST have no \
                 meaning: use wss://, or remove them",
            );
        } else if is("wss") && tls.first {
            self.problem(
                "NATS_TLS_FIRST",
                "has no meaning with wss://, where TLS always comes first: remove it",
            );
        }
        tls
    }

    fn nats_auth(&mut self) -> NatsAuth {
        const WAYS: [&str; 5] = ["NATS_TOKEN", "NATS_TOKEN_FILE", "NATS_CREDS", "NATS_NKEY", "NATS_USER"];
        let set: Vec<_> = WAYS.into_iter().filter(|name| self.text(name).is_some()).collect();
        let password = self.text("NATS_PASSWORD");
        if let [first, second, ..] = set[..] {
            self.problem(first, format!("cannot be combined with {second}: set one way to log in"));
            return NatsAuth::None;
        }
        let value = set.first().and_then(|name| self.text(name));
        match (set.first().copied(), value, password) {
            (Some("NATS_USER"), Some(user), Some(password)) => {
                NatsAuth::UserAndPassword(user, password.into())
            }
            (Some("NATS_USER"), ..) | (None, _, Some(_)) => {
                self.problem("NATS_USER", "must be set together with NATS_PASSWORD: set both or none");
                NatsAuth::None
            }
            (Some(name), _, Some(_)) => {
                self.problem(
                    name,
                    "cannot be combined with NATS_USER and NATS_PASSWORD: set one way to log in",
                );
                NatsAuth::None
            }
            (Some("NATS_TOKEN"), Some(token), _) => NatsAuth::Token(token.into()),
            (Some("NATS_TOKEN_FILE"), Some(file), _) => {
                NatsAuth::TokenFile(
                    self.login_file("NATS_TOKEN_FILE", file, |text| login::token(text).map(drop)),
                )
            }
            (Some("NATS_CREDS"), Some(file), _) => {
                NatsAuth::CredentialsFile(
                    self.login_file("NATS_CREDS", file, |text| login::credentials(text, &[]).map(drop)),
                )
            }
            (Some("NATS_NKEY"), Some(file), _) => {
                NatsAuth::NkeyFile(
                    self.login_file("NATS_NKEY", file, |text| login::nkey(text, &[]).map(drop)),
                )
            }
            _ => NatsAuth::None,
        }
    }

    /// Returns the path of a file that is read at each connect. The file must be valid at the start
    /// as well.
    fn login_file(
        &mut self,
        name: &str,
        file: String,
        check: impl Fn(&str) -> Result<(), login::LoginError>,
    ) -> PathBuf {
        let file = PathBuf::from(file);
        match std::fs::read_to_string(&file) {
            Err(error) => self.problem(name, format!("cannot read the file {}: {error}", shown(&file))),
            Ok(text) => {
                if let Err(error) = check(&text) {
                    self.problem(name, format!("the file {} is invalid: {error}", shown(&file)));
                }
            }
        }
        file
    }
}

fn shown(file: &Path) -> String {
    file.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::LOCAL_NATS;
    use super::*;

    fn faults(variables: &[(&str, &str)]) -> Vec<String> {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let mut env = Environment::new(&lookup);
        let connection = env.connection(Some(LOCAL_NATS));
        assert!(!format!("{connection:?}").contains("hidden"));
        env.problems.iter().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn schemes_that_break_anothers_promise_are_refused() {
        for good in ["nats://a", "tls://a,nats://b", "ws://a:1,ws://b:1", "wss://a,wss://b", "a:4222"] {
            assert!(faults(&[("NATS_URL", good)]).is_empty(), "{good}");
        }
        for bad in ["ws://a,nats://b", "wss://a,tls://b", "ws://a,wss://b", "http://a", "wss://a,nats://b"] {
            assert_eq!(faults(&[("NATS_URL", bad)]), ["NATS_URL"], "{bad}");
        }
        assert_eq!(faults(&[("NATS_URL", "ws://a"), ("NATS_TLS_FIRST", "true")]), ["NATS_URL"]);
        assert_eq!(faults(&[("NATS_URL", "wss://a"), ("NATS_TLS_FIRST", "true")]), ["NATS_TLS_FIRST"]);
    }

    #[test]
    fn one_promise_of_encryption_holds_for_every_server() {
        let encrypts = |url: &str, first: bool| {
            let servers = url.split(',').map(|url| url.parse().unwrap()).collect();
            let tls = NatsTls { first, ..NatsTls::default() };
            NatsConnection { servers, auth: NatsAuth::None, tls, inbox_prefix: None }.must_encrypt()
        };
        assert!(
            encrypts("nats://a,tls://b", false) && encrypts("wss://a", false) && encrypts("nats://a", true)
        );
        assert!(!encrypts("nats://a,nats://b", false) && !encrypts("ws://a", false));
    }

    #[test]
    fn there_is_one_way_to_log_in() {
        let file = "/dev/null";
        assert_eq!(faults(&[("NATS_USER", "me")]), ["NATS_USER"]);
        assert_eq!(faults(&[("NATS_PASSWORD", "hidden")]), ["NATS_USER"]);
        assert_eq!(
            faults(&[("NATS_TOKEN", "hidden"), ("NATS_USER", "me"), ("NATS_PASSWORD", "x")]),
            ["NATS_TOKEN"]
        );
        assert_eq!(faults(&[("NATS_NKEY", file), ("NATS_CREDS", file)]), ["NATS_CREDS"]);
        assert_eq!(faults(&[("NATS_TOKEN", "hidden"), ("NATS_PASSWORD", "hidden")]), ["NATS_TOKEN"]);
        for name in ["NATS_CREDS", "NATS_NKEY", "NATS_TOKEN_FILE"] {
            assert_eq!(faults(&[(name, file)]), [name], "an empty file");
            assert_eq!(faults(&[(name, "/nonexistent/file")]), [name]);
        }
        assert_eq!(faults(&[("NATS_CERT", file)]), ["NATS_CERT"]);
        assert_eq!(faults(&[("NATS_CERT", file), ("NATS_KEY", "/nonexistent/key")]), ["NATS_KEY"]);
        assert_eq!(faults(&[("NATS_CA", "/nonexistent/ca")]), ["NATS_CA"]);
    }
}
