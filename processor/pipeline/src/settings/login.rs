//! Logs in to NATS with a file: a token, the seed of an NKey, or credentials (a JWT and its seed).
//!
//! The file is read at each connect, so that rotated secrets take effect. Parsing is pure.

use std::path::PathBuf;

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

/// Why a login file cannot be used. The error shows nothing of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginError {
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// The file is not a credentials file.
    #[error("the JWT or the seed is missing between lines such as -----BEGIN NATS USER JWT-----")]
    NotCredentials,
    /// The seed is invalid.
    #[error("the seed of a user NKey, which begins with SU, is missing")]
    NotSeed,
}

/// A login file, by its kind.
#[derive(Clone, Debug)]
pub(crate) enum LoginFile {
    Token(PathBuf),
    Credentials(PathBuf),
    Nkey(PathBuf),
}

impl LoginFile {
    /// Reads the file and signs the nonce of the server with it.
    pub(crate) async fn login(self, nonce: Vec<u8>) -> Result<Auth, AuthError> {
        let (Self::Token(file) | Self::Credentials(file) | Self::Nkey(file)) = &self;
        let said = |what: &dyn std::fmt::Display| AuthError::new(format!("{}: {what}", file.display()));
        // A blocking read: the file has a few hundred bytes and is read once for each connect.
        let text = std::fs::read_to_string(file).map_err(|error| said(&error))?;
        match self {
            Self::Token(_) => token(&text),
            Self::Credentials(_) => credentials(&text, &nonce),
            Self::Nkey(_) => nkey(&text, &nonce),
        }
        .map_err(|error| said(&error))
    }
}

/// The login by a token.
pub(crate) fn token(text: &str) -> Result<Auth, LoginError> {
    let token = text.trim();
    if token.is_empty() {
        return Err(LoginError::Empty);
    }
    let mut auth = Auth::new();
    auth.token = Some(token.to_owned());
    Ok(auth)
}

/// The login by an NKey for this nonce.
pub(crate) fn nkey(text: &str, nonce: &[u8]) -> Result<Auth, LoginError> {
    // nsc writes the bare seed, or puts it between the lines of a credentials file.
    let seed = blocks(text).pop().unwrap_or_else(|| text.trim());
    let (key, signature) = sign(seed, nonce)?;
    let mut auth = Auth::new();
    (auth.nkey, auth.signature) = (Some(key.public_key()), Some(signature));
    Ok(auth)
}

/// The login by credentials for this nonce.
pub(crate) fn credentials(text: &str, nonce: &[u8]) -> Result<Auth, LoginError> {
    let [jwt, seed] = blocks(text)[..] else { return Err(LoginError::NotCredentials) };
    let (_, signature) = sign(seed, nonce)?;
    let mut auth = Auth::new();
    (auth.jwt, auth.signature) = (Some(jwt.to_owned()), Some(signature));
    Ok(auth)
}

fn sign(seed: &str, nonce: &[u8]) -> Result<(KeyPair, Vec<u8>), LoginError> {
    let key = KeyPair::from_seed(seed).map_err(|_| LoginError::NotSeed)?;
    let signature = key.sign(nonce).map_err(|_| LoginError::NotSeed)?;
    Ok((key, signature))
}

/// The lines that stand between lines of dashes.
fn blocks(text: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let mut within = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("---") {
            within = line.contains("BEGIN");
        } else if within {
            blocks.push(line);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_signed_by_the_seed_bare_or_between_its_lines() {
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let decorated = format!("-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n");
        for text in [format!("{seed}\n"), decorated.clone()] {
            let auth = nkey(&text, b"nonce").unwrap();
            assert_eq!(auth.nkey.unwrap(), key.public_key());
            assert!(key.verify(b"nonce", &auth.signature.unwrap()).is_ok());
        }
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.x.y\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\nkeep it\n\n{decorated}"
        );
        let auth = credentials(&creds, b"nonce").unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("eyJ0.x.y"));
        assert!(key.verify(b"nonce", &auth.signature.unwrap()).is_ok());
    }

    #[test]
    fn what_is_no_login_is_refused_and_nothing_of_it_told() {
        let error = |result: Result<Auth, LoginError>| result.err().unwrap();
        assert_eq!(error(token(" \n")), LoginError::Empty);
        assert_eq!(error(nkey("hidden", b"")), LoginError::NotSeed);
        assert_eq!(error(credentials("hidden", b"")), LoginError::NotCredentials);
        let half = "-----BEGIN NATS USER JWT-----\nhidden\n------END NATS USER JWT------";
        assert_eq!(error(credentials(half, b"")), LoginError::NotCredentials);
        assert!(!LoginError::NotSeed.to_string().contains("hidden"));
    }
}
