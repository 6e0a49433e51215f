//! A certificate authority for one test, and the certificates that it signs, as files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// A certificate authority and two certificates of it: a server's and a client's.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Creates them with new keys; the server's certificate is for 127.0.0.1 and localhost.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn new() -> anyhow::Result<Self> {
        Self::for_servers(&["127.0.0.1", "localhost"])
    }

    /// Creates them with a server's certificate for these names. With it, a server can also be the client of another server.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn for_servers(names: &[&str]) -> anyhow::Result<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let dir = TempDir::new()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "the test's own authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::write(dir.path().join("ca.crt"), authority.pem())?;
        let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        for (name, hosts, usages) in [
            ("server", names, vec![server, client.clone()]),
            ("client", vec!["replica".to_owned()], vec![client]),
        ] {
            let mut params = CertificateParams::new(hosts)?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = usages;
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &authority)?;
            std::fs::write(dir.path().join(format!("{name}.crt")), certificate.pem())?;
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Self { dir })
    }

    /// The path of `ca.crt`, `server.crt`, `server.key`, `client.crt` or `client.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder of the files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}
