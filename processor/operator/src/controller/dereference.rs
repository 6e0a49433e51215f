//! Reads the Secrets that a pipeline refers to. Keeps only the names of the keys, and the lists of hosts and pipelines. No other
//! value stays in memory after the read.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, ResourceExt};

use super::seniority::{age, older};
use crate::api::TaskPipeline;

/// The facts about a Secret, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretFacts {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    /// The keys with a value that is not blank.
    pub(crate) keys: BTreeSet<String>,
    /// The hosts that may receive the Secret, from its key `hosts`, which is not secret.
    pub(crate) hosts: Vec<String>,
    /// The pipelines that may use the Secret, from its key `pipelines`, if it has that key.
    pub(crate) pipelines: Option<Vec<String>>,
    /// The oldest pipeline that refers to the Secret, if it is older than this one.
    pub(crate) claimed_by: Option<String>,
}

/// The result of looking for a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    There(SecretFacts),
    /// No Secret has this name.
    Missing(String),
}

/// The Secrets that a pipeline refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) kv: Found,
    pub(crate) nats_auth: Option<Found>,
    pub(crate) nats_ca: Option<Found>,
}

/// A Secret that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the Secret {name}: {source}")]
pub(crate) struct DereferenceError {
    name: String,
    source: kube::Error,
}

/// Reads the Secrets that the pipeline refers to. `all`: all known pipelines.
///
/// # Errors
/// If the API server does not return a Secret.
pub(crate) async fn dereference(
    client: &Client,
    pipeline: &TaskPipeline,
    all: &[Arc<TaskPipeline>],
) -> Result<References, DereferenceError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &pipeline.namespace().unwrap_or_default());
    let find = async |name: &str| find(&secrets, name, claimed_by(name, pipeline, all)).await;
    let kv = find(&pipeline.spec.kv.secret_ref.name).await?;
    let nats_auth = match &pipeline.spec.nats.auth_secret_ref {
        Some(reference) => Some(find(&reference.name).await?),
        None => None,
    };
    let nats_ca = match &pipeline.spec.nats.ca_secret_ref {
        Some(reference) => Some(find(&reference.name).await?),
        None => None,
    };
    Ok(References { kv, nats_auth, nats_ca })
}

/// The oldest pipeline of the namespace that refers to this Secret, unless it is this pipeline.
fn claimed_by(secret: &str, pipeline: &TaskPipeline, all: &[Arc<TaskPipeline>]) -> Option<String> {
    let refers = |other: &&Arc<TaskPipeline>| {
        let auth = other.spec.nats.auth_secret_ref.as_ref();
        other.spec.kv.secret_ref.name == secret || auth.is_some_and(|auth| auth.name == secret)
    };
    older(pipeline, all).filter(refers).min_by_key(|other| age(other)).map(|oldest| oldest.name_any())
}

async fn find(
    secrets: &Api<Secret>,
    name: &str,
    claimed_by: Option<String>,
) -> Result<Found, DereferenceError> {
    match secrets.get_opt(name).await {
        Ok(Some(secret)) => Ok(Found::There(SecretFacts { claimed_by, ..facts(&secret) })),
        Ok(None) => Ok(Found::Missing(name.to_owned())),
        Err(source) => Err(DereferenceError { name: name.to_owned(), source }),
    }
}

fn facts(secret: &Secret) -> SecretFacts {
    let data = secret.data.iter().flatten();
    let is_blank = |value: &[u8]| value.iter().all(u8::is_ascii_whitespace);
    let listed = |key: &str| {
        let text = String::from_utf8_lossy(&secret.data.as_ref()?.get(key)?.0).into_owned();
        let entries = text.split([',', ' ', '\n']).map(|entry| entry.trim().to_ascii_lowercase());
        Some(entries.filter(|entry| !entry.is_empty()).collect())
    };
    SecretFacts {
        name: secret.name_any(),
        uid: secret.uid().unwrap_or_default(),
        resource_version: secret.resource_version().unwrap_or_default(),
        keys: data.filter(|(_, value)| !is_blank(&value.0)).map(|(key, _)| key.clone()).collect(),
        hosts: listed("hosts").unwrap_or_default(),
        pipelines: listed("pipelines"),
        claimed_by: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pipeline(name: &str, created: &str, kv: &str, auth: Option<&str>) -> Arc<TaskPipeline> {
        let auth = auth.map(|name| json!({"name": name}));
        let mut nats = json!({"url": "nats://n"});
        if let Some(auth) = auth {
            nats["authSecretRef"] = auth;
        }
        let metadata = json!({"name": name, "namespace": "shop", "uid": name, "creationTimestamp": created});
        let spec = json!({"nats": nats, "kv": {"secretRef": {"name": kv}}});
        let whole = json!({"apiVersion": "taskpipeline.dev/v1alpha1", "kind": "TaskPipeline",
            "metadata": metadata, "spec": spec});
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    #[test]
    fn a_secret_belongs_to_the_oldest_pipeline_that_refers_to_it() {
        let old = pipeline("old", "2026-01-01T00:00:00Z", "kv", Some("auth"));
        let new = pipeline("new", "2026-02-01T00:00:00Z", "own", Some("auth"));
        let newest = pipeline("newest", "2026-03-01T00:00:00Z", "auth", None);
        let all = [Arc::clone(&newest), Arc::clone(&new), Arc::clone(&old)];
        let claimed = |secret: &str, by: &TaskPipeline| claimed_by(secret, by, &all);
        assert_eq!(claimed("auth", &old), None);
        assert_eq!(claimed("auth", &new).as_deref(), Some("old"));
        assert_eq!(claimed("auth", &newest).as_deref(), Some("old"), "under another name, too");
        assert_eq!(claimed("own", &new), None);
        let elsewhere = TaskPipeline {
            metadata: kube::api::ObjectMeta { namespace: Some("other".to_owned()), ..new.metadata.clone() },
            ..(*new).clone()
        };
        assert_eq!(claimed("auth", &elsewhere), None);
    }
}
