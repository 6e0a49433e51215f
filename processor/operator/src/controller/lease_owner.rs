//! Makes the operator's Deployment the owner of its Lease, so that the garbage collector removes both. The chart cannot set the
//! owner, because Helm would refuse to adopt a Lease that an operator has created.
//!
//! A separate field manager sets the owner, so this patch and the writes of the holder do not affect each other.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::leadership::Candidate;
use super::names::FIELD_MANAGER;

/// The wait before a retry. The owner matters only when the Deployment is deleted.
const AGAIN: Duration = Duration::from_secs(600);

/// Makes the Deployment the owner of the Lease. A failure does not stop the operator: it logs the failure and retries.
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

/// The patch that sets the owner, unless the Lease has it.
fn patch(lease: &Lease, deployment: &Deployment) -> Option<Value> {
    // Without blocking the Deployment's deletion, which would need a right beyond the Lease.
    let owner = deployment.owner_ref(&())?;
    let belongs = lease.owner_references().iter().any(|it| it.uid == owner.uid);
    (!belongs).then(|| {
        json!({
            "apiVersion": Lease::api_version(&()),
            "kind": Lease::kind(&()),
            // With the uid, the patch cannot create a Lease that was deleted meanwhile.
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
