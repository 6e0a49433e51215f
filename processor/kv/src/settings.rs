//! Where a namespace is, and the token for it.

use std::net::IpAddr;

use reqwest::Url;
use secrecy::SecretString;

/// A KV namespace and the token for it.
#[derive(Debug)]
pub struct KvSettings {
    /// `{base}[/accounts/{account}]/storage/kv/namespaces/{namespace}`
    pub namespace_url: Url,
    /// Allows to read and write in it.
    pub token: SecretString,
}

impl KvSettings {
    /// The host that gets the token unencrypted over the network, if one does.
    #[must_use]
    pub fn unencrypted(&self) -> Option<&str> {
        let host = self.namespace_url.host_str()?;
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_loopback = address.map_or(host == "localhost", |address| address.is_loopback());
        (self.namespace_url.scheme() == "http" && !is_loopback).then_some(host)
    }
}
