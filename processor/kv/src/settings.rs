//! The address of a namespace, and its token.

use std::net::IpAddr;

use reqwest::Url;
use secrecy::SecretString;

/// The address of a KV namespace, and its token.
#[derive(Debug)]
pub struct KvSettings {
    /// The URL: `{base}[/accounts/{account}]/storage/kv/namespaces/{namespace}`
    pub namespace_url: Url,
    /// The token, which must have permission to read and write.
    pub token: SecretString,
}

impl KvSettings {
    /// The host to which the token is sent unencrypted over the network, if any.
    #[must_use]
    pub fn unencrypted(&self) -> Option<&str> {
        let host = self.namespace_url.host_str()?;
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_loopback = address.map_or(host == "localhost", |address| address.is_loopback());
        (self.namespace_url.scheme() == "http" && !is_loopback).then_some(host)
    }
}
