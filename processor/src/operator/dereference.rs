//! What a pipeline refers to, as it is now. Reads, and keeps nothing of a Secret but which keys it has and where it may be
//! sent: its values never get into memory that lives longer than the reading.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, ResourceExt};

use crate::api::TaskPipeline;

/// What is known of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretFacts {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    /// The keys that hold something.
    pub(crate) keys: BTreeSet<String>,
    /// To which hosts it may be sent: its key `hosts`, which is no secret.
    pub(crate) hosts: Vec<String>,
}

/// A Secret that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    There(SecretFacts),
    /// There is none of this name.
    Missing(String),
}

/// What a pipeline refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) kv: Found,
    pub(crate) nats_auth: Option<Found>,
}

/// Why a Secret could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("the Secret {name} cannot be read: {source}")]
pub(crate) struct DereferenceError {
    name: String,
    source: kube::Error,
}

/// Reads what the pipeline refers to.
///
/// # Errors
/// Where the API server does not say.
pub(crate) async fn dereference(
    client: &Client,
    pipeline: &TaskPipeline,
) -> Result<References, DereferenceError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &pipeline.namespace().unwrap_or_default());
    let kv = find(&secrets, &pipeline.spec.kv.secret_ref.name).await?;
    let nats_auth = match &pipeline.spec.nats.auth_secret_ref {
        Some(reference) => Some(find(&secrets, &reference.name).await?),
        None => None,
    };
    Ok(References { kv, nats_auth })
}

async fn find(secrets: &Api<Secret>, name: &str) -> Result<Found, DereferenceError> {
    match secrets.get_opt(name).await {
        Ok(Some(secret)) => Ok(Found::There(facts(&secret))),
        Ok(None) => Ok(Found::Missing(name.to_owned())),
        Err(source) => Err(DereferenceError { name: name.to_owned(), source }),
    }
}

fn facts(secret: &Secret) -> SecretFacts {
    let data = secret.data.iter().flatten();
    let is_blank = |value: &[u8]| value.iter().all(u8::is_ascii_whitespace);
    let hosts = secret.data.as_ref().and_then(|data| data.get("hosts"));
    let hosts = hosts.map(|hosts| String::from_utf8_lossy(&hosts.0).into_owned()).unwrap_or_default();
    SecretFacts {
        name: secret.name_any(),
        uid: secret.uid().unwrap_or_default(),
        resource_version: secret.resource_version().unwrap_or_default(),
        keys: data.filter(|(_, value)| !is_blank(&value.0)).map(|(key, _)| key.clone()).collect(),
        hosts: hosts
            .split([',', ' ', '\n'])
            .map(|host| host.trim().to_ascii_lowercase())
            .filter(|host| !host.is_empty())
            .collect(),
    }
}
