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
    /// Why the token is not safe on its way; nothing where it is encrypted or stays on this machine.
    #[must_use]
    pub fn unencrypted(&self) -> Option<String> {
        let host = self.namespace_url.host_str()?;
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_loopback = address.map_or(host == "localhost", |address| address.is_loopback());
        (self.namespace_url.scheme() == "http" && !is_loopback).then(|| {
            format!(
                "CF_API_BASE_URL is http:// and {host} is not this machine: the token is sent unencrypted"
            )
        })
    }
}
