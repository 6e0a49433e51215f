//! Checks manifests against the API server without effects.

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::discovery::{Discovery, Scope};
use serde_json::{Value, json};

use crate::Namespace;

/// Parses the objects of a YAML text.
///
/// # Errors
/// If the text is not valid YAML.
pub fn objects(manifests: &str) -> anyhow::Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(manifests).context("the manifests are not YAML")?;
    Ok(all.into_iter().filter(Value::is_object).collect())
}

/// Checks manifests by server-side dry runs.
pub struct DryRun<'a> {
    namespace: &'a Namespace,
    kinds: Discovery,
}

impl<'a> DryRun<'a> {
    /// Reads the kinds that the API server knows now. Objects without a namespace belong to this one.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn new(namespace: &'a Namespace) -> anyhow::Result<Self> {
        Ok(Self { namespace, kinds: Discovery::new(namespace.client.clone()).run().await? })
    }

    /// Lets the API server check an object as if it were applied, and returns its kind and name.
    ///
    /// # Errors
    /// If the API server refuses the object; the error has its reason.
    pub async fn apply(&self, manifest: &Value) -> anyhow::Result<String> {
        let object: DynamicObject = serde_json::from_value(manifest.clone())?;
        let types = object.types.as_ref().context("a manifest without a kind")?;
        let what = format!("{} {}", types.kind, object.name_any());
        let kind = GroupVersionKind::try_from(types)?;
        let found = self.kinds.resolve_gvk(&kind);
        let (resource, capabilities) = found.with_context(|| format!("{what}: unknown kind"))?;
        let client = self.namespace.client.clone();
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client, &resource),
            Scope::Namespaced => {
                let named = object.namespace().unwrap_or_else(|| self.namespace.name.clone());
                Api::namespaced_with(client, &named, &resource)
            }
        };
        let params = PatchParams::apply("e2e").force().dry_run().validation_strict();
        let applied = api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await;
        applied.with_context(|| format!("the API server refuses {what}"))?;
        Ok(what)
    }

    /// Lets the API server check the pod of an object, and returns whether the object has one. Pod security judges only pods.
    ///
    /// # Errors
    /// If the API server refuses the pod; the error has its reason.
    pub async fn pod(&self, manifest: &Value) -> anyhow::Result<bool> {
        let spec = match manifest["kind"].as_str() {
            Some("Pod") => manifest.get("spec"),
            _ => manifest.pointer("/spec/template/spec"),
        };
        let Some(mut spec) = spec.cloned() else { return Ok(false) };
        let fields = spec.as_object_mut().context("a pod without a spec")?;
        // Admission requires the account to exist, but it does not exist yet.
        fields.remove("serviceAccountName");
        let mut volumes = fields.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
        for claim in manifest["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
            volumes.push(json!({"name": claim["metadata"]["name"], "emptyDir": {}}));
        }
        fields.insert("volumes".to_owned(), volumes.into());
        let pod = json!({"metadata": {"name": manifest["metadata"]["name"]}, "spec": spec});
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let created = self.namespace.api::<Pod>().create(&params, &serde_json::from_value(pod)?).await;
        created
            .with_context(|| format!("the API server refuses a pod of {}", manifest["metadata"]["name"]))?;
        Ok(true)
    }
}
