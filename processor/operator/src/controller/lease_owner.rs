//! The operator's Lease belongs to the operator's own Deployment, so that the garbage collector removes the one with the
//! other. The chart cannot do it: Helm would refuse to take over a Lease that an operator has made before.
//!
//! It is said under a field manager of its own: what the holder of the Lease writes into it leaves it alone, and it leaves
//! alone what the holder writes.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::leadership::Candidate;
use super::names::FIELD_MANAGER;

/// How long until it is tried again. It matters only when the Deployment goes.
const AGAIN: Duration = Duration::from_secs(600);

/// Has the Lease belong to this Deployment. That it does not is no reason not to work: it is said, and tried again.
pub(crate) async fn hand_over(client: Client, candidate: Candidate, deployment: String) {
    let Candidate { namespace, lease, .. } = &candidate;
    while let Err(error) = once(&client, &candidate, &deployment).await {
        warn!(namespace, lease, deployment, %error, retry_in_seconds = AGAIN.as_secs(), "cannot set the owner of the Lease; retrying");
        tokio::time::sleep(AGAIN).await;
    }
}

async fn once(client: &Client, candidate: &Candidate, deployment: &str) -> Result<(), kube::Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &candidate.namespace);
    let leases: Api<Lease> = Api::namespaced(client.clone(), &candidate.namespace);
    let (deployment, lease) = tokio::try_join!(deployments.get(deployment), leases.get(&candidate.lease))?;
    if let Some(patch) = patch(&lease, &deployment) {
        leases.patch(&candidate.lease, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&patch)).await?;
        info!(lease = candidate.lease, deployment = deployment.name_any(), "set the owner of the Lease");
    }
    Ok(())
}

/// What makes the Lease belong to the Deployment; nothing, where it does.
fn patch(lease: &Lease, deployment: &Deployment) -> Option<Value> {
    // It does not hold up the Deployment's deletion, for which a right to more than the Lease would be needed.
    let owner = deployment.owner_ref(&())?;
    let belongs = lease.owner_references().iter().any(|it| it.uid == owner.uid);
    (!belongs).then(|| {
        json!({
            "apiVersion": Lease::api_version(&()),
            "kind": Lease::kind(&()),
            // By its uid: one that is gone is not made anew.
            "metadata": {"name": lease.name_any(), "uid": lease.uid(), "ownerReferences": [owner]},
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(uid: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "tasks-taskpipeline-operator", "uid": uid},
            "spec": {"selector": {}, "template": {}},
        }))
        .unwrap()
    }

    fn lease(owners: &[Value]) -> Lease {
        let metadata =
            json!({"name": "operator", "uid": "1e", "resourceVersion": "7", "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"holderIdentity": "pod-1"}})).unwrap()
    }

    fn owner(uid: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "tasks-taskpipeline-operator", "uid": uid})
    }

    #[test]
    fn the_patch_names_the_owner_and_nothing_of_what_the_holder_writes() {
        let metadata = json!({"name": "operator", "uid": "1e", "ownerReferences": [owner("d1")]});
        let whole = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata});
        assert_eq!(patch(&lease(&[]), &deployment("d1")), Some(whole));
    }

    #[test]
    fn one_that_belongs_to_the_deployment_is_left_alone_and_one_of_an_earlier_deployment_is_not() {
        assert_eq!(patch(&lease(&[owner("d0"), owner("d1")]), &deployment("d1")), None);
        assert!(patch(&lease(&[owner("d0")]), &deployment("d1")).is_some());
    }
}
