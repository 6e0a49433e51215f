//! `taskpipeline crd`: prints the CRD, or upgrades it in a cluster, which `helm upgrade` does not do by itself. An older
//! program never downgrades a newer CRD, because pipelines may already use its fields.
//!
//! Helm 4 applies the chart's CRD itself, server-side, at each `helm install`, before any hook. Therefore:
//! - This module applies the CRD under the manager that applied it before, usually Helm. With another manager, the next
//!   installation of another version would fail with a conflict.
//! - An older chart must fail with a conflict. Each version's CRD has an annotation of its own, and a newer version holds the
//!   annotations of all earlier versions, with another value.

use std::time::Duration;

use clap::Args;
use k8s_openapi::Resource;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::{CustomResourceExt, ResourceExt};
use semver::Version;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::api::TaskPipeline;

/// The annotation with the version of the program that wrote the CRD.
const VERSION: &str = "taskpipeline.dev/version";

/// The prefix of the annotation that each version has of its own.
const OWN: &str = "taskpipeline.dev/crd-";

/// The earlier versions. Add a version here when you begin the next one.
const EARLIER: &[&str] = &["0.1.0"];

/// The field manager of a CRD that nobody has applied yet.
const FIELD_MANAGER: &str = "helm";

/// The field manager of the annotations of earlier versions. The conflict of an older chart names it.
const GUARD: &str = "newer-taskpipeline";

/// How long the API server may take until it serves the CRD.
const PATIENCE: Duration = Duration::from_secs(30);

/// The options of `taskpipeline crd`.
#[derive(Debug, Args)]
pub struct Crd {
    /// Apply it to the cluster, unless a newer one is there
    #[arg(long)]
    apply: bool,
}

/// Why the CRD is not up to date.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The CRD cannot be written as YAML.
    #[error("cannot write the CRD")]
    Yaml(#[from] serde_saphyr::ser::Error),
    /// No cluster is configured.
    #[error("cannot find the cluster. In a cluster, check the service account; elsewhere, the kubeconfig")]
    Infer(#[from] kube::config::InferConfigError),
    /// The API server refuses the CRD.
    #[error("cannot apply the CRD {name}")]
    Api {
        /// The name of the CRD.
        name: String,
        /// The error of the API server.
        source: kube::Error,
    },
    /// The CRD in the cluster is newer.
    #[error(
        "the CRD in the cluster has version {theirs}, and this program has {ours}: a downgrade could break pipelines. \
         Install version {theirs} or later"
    )]
    Newer {
        /// The version of the CRD in the cluster.
        theirs: String,
        /// The version of this program.
        ours: &'static str,
    },
    /// The API server does not serve the applied CRD.
    #[error("applied the CRD {name}, but the API server does not serve it after {} s. Run `kubectl describe crd {name}`", PATIENCE.as_secs())]
    NotServed {
        /// The name of the CRD.
        name: String,
    },
}

impl Crd {
    /// Returns the CRD as text, or applies it and returns a message.
    ///
    /// # Errors
    /// If the CRD cannot be applied, or the cluster has a newer one.
    pub async fn run(&self) -> Result<String, CrdError> {
        if self.apply { apply().await } else { Ok(yaml()?) }
    }
}

/// The CRD with the annotations of this version.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    let mut crd = TaskPipeline::crd();
    let version = env!("CARGO_PKG_VERSION");
    crd.annotations_mut().insert(VERSION.to_owned(), version.to_owned());
    crd.annotations_mut().insert(format!("{OWN}{version}"), "current".to_owned());
    crd
}

/// The field manager under which the CRD is applied.
fn manager(crd: Option<&CustomResourceDefinition>) -> String {
    let mut appliers = crd
        .and_then(|crd| crd.metadata.managed_fields.as_ref())
        .into_iter()
        .flatten()
        .filter(|entry| entry.operation.as_deref() == Some("Apply"))
        .filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:spec").is_some()))
        .filter_map(|entry| entry.manager.clone())
        .collect::<Vec<_>>();
    // Helm comes first: even if others applied the CRD once, it belongs to a chart now.
    appliers.sort_by_key(|name| name != FIELD_MANAGER);
    appliers.into_iter().next().unwrap_or_else(|| FIELD_MANAGER.to_owned())
}

/// The annotations that make older charts fail, if there are earlier versions.
fn guard(version: &str) -> Option<Value> {
    let superseded =
        |earlier: &&str| (format!("{OWN}{earlier}"), Value::from(format!("superseded by {version}")));
    let annotations: Map<String, Value> = EARLIER.iter().map(superseded).collect();
    (!annotations.is_empty()).then(|| {
        json!({
            "apiVersion": CustomResourceDefinition::API_VERSION,
            "kind": CustomResourceDefinition::KIND,
            "metadata": {"annotations": annotations},
        })
    })
}

/// The CRD as YAML.
///
/// # Errors
/// Never in practice, because the CRD comes from the types.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&crd())
}

async fn apply() -> Result<String, CrdError> {
    // Two crypto providers are compiled in, so rustls cannot choose by itself.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let crd = crd();
    let name = crd.name_any();
    let failed = |source: kube::Error| CrdError::Api { name: name.clone(), source };
    let client = kube::Client::try_from(kube::Config::infer().await?).map_err(failed)?;
    let crds: Api<CustomResourceDefinition> = Api::all(client);
    let before = crds.get_opt(&name).await.map_err(failed)?;
    let theirs = before.as_ref().and_then(|crd| crd.annotations().get(VERSION));
    let ours = env!("CARGO_PKG_VERSION");
    if let Some(theirs) = theirs.filter(|theirs| is_newer(theirs, ours)) {
        return Err(CrdError::Newer { theirs: theirs.clone(), ours });
    }
    let params = PatchParams::apply(&manager(before.as_ref())).force();
    let applied = crds.patch(&name, &params, &Patch::Apply(&crd)).await.map_err(failed)?;
    if let Some(guard) = guard(ours) {
        let params = PatchParams::apply(GUARD).force();
        crds.patch(&name, &params, &Patch::Apply(&guard)).await.map_err(failed)?;
    }
    let began = Instant::now();
    loop {
        let conditions = crds.get(&name).await.map_err(failed)?.status.and_then(|status| status.conditions);
        let is_served =
            conditions.iter().flatten().any(|it| it.type_ == "Established" && it.status == "True");
        if is_served {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(CrdError::NotServed { name });
        }
        sleep(Duration::from_millis(200)).await;
    }
    let is_same = before.is_some_and(|before| before.metadata.generation == applied.metadata.generation);
    let what = if is_same { "is up to date" } else { "was brought up to date" };
    Ok(format!("the CRD {name} {what}: version {ours}\n"))
}

/// Whether one version is newer than the other. A version that does not parse is not newer.
fn is_newer(one: &str, other: &str) -> bool {
    let (one, other) = (Version::parse(one), Version::parse(other));
    matches!((one, other), (Ok(one), Ok(other)) if one > other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_version_is_newer() {
        for (one, other) in [("0.2.0", "0.1.0"), ("0.10.0", "0.9.0"), ("1.0.0", "0.99.99")] {
            assert!(is_newer(one, other) && !is_newer(other, one), "{one} {other}");
        }
        assert!(!is_newer("0.1.0", "0.1.0") && !is_newer("latest", "0.1.0"));
    }

    #[test]
    fn the_version_stands_in_it_and_is_not_among_the_earlier_ones() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(crd().annotations()[VERSION], version);
        assert_eq!(crd().annotations()[&format!("{OWN}{version}")], "current");
        assert!(EARLIER.iter().all(|earlier| is_newer(version, earlier)));
    }

    #[test]
    fn each_earlier_version_is_kept_out_by_its_own_annotation_and_nothing_else_is_held() {
        let guard = guard("0.2.0").unwrap();
        assert_eq!(guard["kind"], "CustomResourceDefinition");
        let held = guard["metadata"]["annotations"].as_object().unwrap();
        assert_eq!(held["taskpipeline.dev/crd-0.1.0"], "superseded by 0.2.0");
        assert_eq!(held.len(), EARLIER.len());
        assert_eq!(guard["metadata"].as_object().unwrap().len(), 1);
        assert!(guard.get("spec").is_none());
        // With a shared annotation, the CRD and the guard would change it back and forth at each run.
        assert!(held.keys().all(|annotation| !crd().annotations().contains_key(annotation)));
    }

    #[test]
    fn it_is_applied_under_the_name_of_whoever_has_applied_it() {
        let applied = |entries: Value| {
            let metadata = json!({"name": "x", "managedFields": entries});
            let spec = crd().spec;
            let crd = json!({"metadata": metadata, "spec": spec});
            manager(Some(&serde_json::from_value(crd).unwrap()))
        };
        let entry = |manager: &str, operation: &str, field: &str| json!({"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": {field: {}}});
        assert_eq!(manager(None), "helm");
        assert_eq!(applied(json!([entry("helm-controller", "Apply", "f:spec")])), "helm-controller");
        assert_eq!(applied(json!([entry("a", "Apply", "f:spec"), entry("helm", "Apply", "f:spec")])), "helm");
        let others = json!([entry("kubectl", "Update", "f:spec"), entry(GUARD, "Apply", "f:metadata")]);
        assert_eq!(applied(others), "helm");
    }
}
