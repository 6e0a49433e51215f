//! Applies an object to the cluster with server-side apply, and writes nothing if it is already up to date.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::info;

use super::covers::difference;
use super::names::FIELD_MANAGER;

/// The annotation with a digest of the last applied object. The comparison with the live object cannot show that a field is no
/// longer wanted. The changed digest shows it, and the next apply removes the field.
const APPLIED: &str = "taskpipeline.dev/applied";

/// How many attempts remove the managed fields of the create. An attempt fails if a controller writes at that moment.
const DISOWN: u32 = 5;

/// Why an object could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("cannot read the {kind} {name}: {source}")]
    Read { kind: String, name: String, source: kube::Error },
    #[error("cannot apply the {kind} {name}: {source}")]
    Apply { kind: String, name: String, source: kube::Error },
    #[error("the {kind} {name} belongs to another owner: delete it, or rename the pipeline")]
    NotOurs { kind: String, name: String },
    #[error("cannot write the {kind} {name} as JSON: {source}")]
    Json { kind: String, name: String, source: serde_json::Error },
}

/// Applies an object, and returns its new state.
///
/// # Errors
/// If the API server refuses the object, or an object of that name belongs to another owner.
pub(crate) async fn apply<T>(client: &Client, wanted: &T) -> Result<T, ApplyError>
where
    T: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug,
{
    let (kind, name) = (T::kind(&()).into_owned(), wanted.name_any());
    let api: Api<T> = Api::namespaced(client.clone(), &wanted.namespace().unwrap_or_default());
    let live = api.get_opt(&name).await.map_err(|source| ApplyError::Read {
        kind: kind.clone(),
        name: name.clone(),
        source,
    })?;
    let to_json = |object: &T| {
        serde_json::to_value(object).map_err(|source| ApplyError::Json {
            kind: kind.clone(),
            name: name.clone(),
            source,
        })
    };
    let refused = |source| ApplyError::Apply { kind: kind.clone(), name: name.clone(), source };
    let plain = to_json(wanted)?;
    let mut desired = marked(plain.clone());
    let live = match live {
        Some(live) => live,
        None => {
            info!(kind, name, "created");
            // An apply would take over an object that another client creates at this moment.
            let params =
                PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            api.create(&params, wanted).await.map_err(refused)?
        }
    };
    let ours = wanted.meta().owner_references.iter().flatten().map(|owner| &owner.uid);
    let has_ours =
        |uid: &String| live.meta().owner_references.iter().flatten().any(|owner| owner.uid == *uid);
    if !ours.into_iter().all(has_ours) {
        return Err(ApplyError::NotOurs { kind, name });
    }
    let there = to_json(&live)?;
    // In this order, so that the log names the field rather than the digest.
    let place = difference(&there, &plain).or_else(|| difference(&there, &desired));
    let is_new = is_as_created(&live);
    match place {
        None if !is_new => return Ok(live),
        Some(place) if !is_new => info!(kind, name, fields = place, "corrected drift"),
        _ => {}
    }
    if let Value::Object(fields) = &mut desired {
        fields.insert("apiVersion".to_owned(), T::api_version(&()).into());
        fields.insert("kind".to_owned(), kind.clone().into());
    }
    // With the uid, the apply cannot hit a new object of the same name.
    if let Some(uid) = live.uid() {
        desired["metadata"]["uid"] = uid.into();
    }
    // Forced, because these fields belong to the operator even if another client has set them.
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let applied = api.patch(&name, &params, &Patch::Apply(&desired)).await.map_err(&refused)?;
    disowned(&api, applied).await.map_err(refused)
}

/// Removes the managed fields of the operator's create, as kubectl does when it changes to server-side apply. Otherwise an apply
/// could not remove fields of the create. A default of the API server, such as a replica count, would also seem to be set by a
/// client.
async fn disowned<T>(api: &Api<T>, mut applied: T) -> Result<T, kube::Error>
where
    T: Resource + DeserializeOwned + Clone + Debug,
{
    let name = applied.name_any();
    for left in (0..DISOWN).rev() {
        if !is_as_created(&applied) {
            break;
        }
        let kept: Vec<_> = applied.managed_fields().iter().filter(|entry| !is_of_create(entry)).collect();
        let version = applied.resource_version();
        let change = json!({"metadata": {"managedFields": kept, "resourceVersion": version}});
        applied = match api.patch(&name, &PatchParams::default(), &Patch::Merge(&change)).await {
            // The controller of the object has written its status meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 && left > 0 => api.get(&name).await?,
            done => done?,
        };
    }
    Ok(applied)
}

/// Whether fields still belong to the operator's create.
fn is_as_created(live: &impl Resource) -> bool {
    live.meta().managed_fields.iter().flatten().any(is_of_create)
}

fn is_of_create(entry: &ManagedFieldsEntry) -> bool {
    let is_ours = entry.manager.as_deref() == Some(FIELD_MANAGER);
    is_ours && entry.operation.as_deref() == Some("Update") && entry.subresource.is_none()
}

/// Adds the annotation [`APPLIED`].
fn marked(mut desired: Value) -> Value {
    let digest = Sha256::digest(desired.to_string());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    desired["metadata"]["annotations"][APPLIED] = digest.into();
    desired
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_follows_what_is_wanted_and_leaves_other_annotations_alone() {
        let wanted =
            |spec: Value| json!({"metadata": {"name": "x", "annotations": {"a": "b"}}, "spec": spec});
        let mark = |spec: Value| marked(wanted(spec))["metadata"]["annotations"][APPLIED].clone();
        assert_eq!(mark(json!({"class": "high"})), mark(json!({"class": "high"})));
        assert_ne!(mark(json!({"class": "high"})), mark(json!({})));
        assert_eq!(mark(json!({})).as_str().unwrap().len(), 16);
        assert_eq!(difference(&marked(wanted(json!({}))), &wanted(json!({}))), None);
        assert_eq!(marked(json!({"metadata": {}}))["metadata"].as_object().unwrap().len(), 1);
    }
}
