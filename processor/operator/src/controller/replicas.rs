//! Decides how many replicas run; [`set`] writes the count.
//!
//! A separate field manager writes the count, and only in two cases: at first, when nobody has set it, and while the pipeline
//! sets it. A single manager for all fields would remove the count whenever it omits the count, and the Deployment would fall
//! back to 1.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tracing::info;

use super::names::REPLICAS_MANAGER;

/// The count if nobody has set one.
const AT_FIRST: i32 = 2;

/// A count to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    replicas: i32,
    /// The count after the end of a suspension, unless somebody sets another.
    resume_with: Option<i32>,
}

/// The count to write, if it differs from the present one.
pub(crate) fn wanted(spec: Option<i32>, suspend: bool, live: Option<&Deployment>) -> Option<Count> {
    let is_owned = live.is_some_and(is_owned);
    let is = live.and_then(|live| live.spec.as_ref()?.replicas).filter(|_| is_owned);
    let suspended_from = live.and_then(suspended_from);
    let (replicas, resume_with) = match (suspend, spec) {
        (true, _) => (0, suspended_from.or(is).or(Some(AT_FIRST))),
        (false, Some(spec)) => (spec, None),
        // The operator restarts only replicas that it stopped itself; another client may have set 0.
        (false, None) => (suspended_from.or(is).unwrap_or(AT_FIRST), None),
    };
    let is_so = is == Some(replicas) && suspended_from == resume_with;
    (!is_so).then_some(Count { replicas, resume_with })
}

/// Whether any client has set the count.
fn is_owned(live: &Deployment) -> bool {
    live.managed_fields().iter().any(|entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| !fields["f:spec"]["f:replicas"].is_null())
    })
}

/// The count before the suspension, if the pipeline is suspended.
fn suspended_from(live: &Deployment) -> Option<i32> {
    live.annotations().get(SUSPENDED).and_then(|text| text.parse().ok())
}

/// The annotation of a suspended Deployment with the count before the suspension.
const SUSPENDED: &str = "taskpipeline.dev/suspended-from";

/// Writes the count.
///
/// # Errors
/// If the API server refuses it.
pub(crate) async fn set(
    client: &Client,
    deployment: &Deployment,
    count: Count,
) -> Result<Deployment, kube::Error> {
    let name = deployment.name_any();
    let api: Api<Deployment> = Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
    let Count { replicas, resume_with } = count;
    let mut metadata = json!({"name": name});
    if let Some(resume_with) = resume_with {
        metadata["annotations"] = json!({SUSPENDED: resume_with.to_string()});
    }
    let body = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"replicas": replicas},
    });
    info!(deployment = name, replicas, "scaled the Deployment");
    let params = PatchParams::apply(REPLICAS_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&body)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(replicas: i32, manager: Option<&str>, suspended_from: Option<&str>) -> Deployment {
        let managed = manager.map(|manager| {
            json!({"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:replicas": {}}}})
        });
        let annotations = suspended_from.map_or(json!({}), |from| json!({SUSPENDED: from}));
        serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "managedFields": managed.into_iter().collect::<Vec<_>>(), "annotations": annotations},
            "spec": {"replicas": replicas, "selector": {}, "template": {}},
        }))
        .unwrap()
    }

    fn count(replicas: i32) -> Option<Count> {
        Some(Count { replicas, resume_with: None })
    }

    #[test]
    fn the_count_is_set_at_first_and_then_left_alone_unless_the_pipeline_says_it() {
        assert_eq!(wanted(None, false, None), count(AT_FIRST));
        // The default of the API server, which no client has set.
        assert_eq!(wanted(None, false, Some(&live(1, None, None))), count(AT_FIRST));
        assert_eq!(wanted(None, false, Some(&live(5, Some("kubectl"), None))), None);
        assert_eq!(wanted(None, false, Some(&live(0, Some("kubectl"), None))), None);
        assert_eq!(wanted(Some(3), false, Some(&live(5, Some("kubectl"), None))), count(3));
        assert_eq!(
            wanted(Some(1), false, Some(&live(1, None, None))),
            count(1),
            "the API server no longer owns the count"
        );
        assert_eq!(wanted(Some(3), false, Some(&live(3, Some(REPLICAS_MANAGER), None))), None);
        assert_eq!(wanted(None, false, Some(&live(3, Some(REPLICAS_MANAGER), None))), None, "it stays");
    }

    #[test]
    fn a_suspended_pipeline_runs_none_and_as_many_as_before_after_it() {
        let stopped = |from| Some(Count { replicas: 0, resume_with: Some(from) });
        assert_eq!(wanted(None, true, Some(&live(5, Some("kubectl"), None))), stopped(5));
        assert_eq!(wanted(Some(3), true, Some(&live(3, Some(REPLICAS_MANAGER), None))), stopped(3));
        assert_eq!(
            wanted(None, true, Some(&live(1, None, None))),
            stopped(AT_FIRST),
            "suspended from the start"
        );
        let suspended = live(0, Some(REPLICAS_MANAGER), Some("5"));
        assert_eq!(wanted(None, true, Some(&suspended)), None);
        assert_eq!(
            wanted(None, true, Some(&live(4, Some("kubectl"), Some("5")))),
            stopped(5),
            "not by scaling"
        );
        assert_eq!(wanted(None, false, Some(&suspended)), count(5));
        assert_eq!(wanted(Some(4), false, Some(&suspended)), count(4));
    }
}
