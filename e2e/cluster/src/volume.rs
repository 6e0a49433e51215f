//! Imitates snapshots of volumes: copies the volume of a claim into that of another, while no pod writes to it.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::{Image, Namespace, eventually, once};

/// Creates a claim like this one, with a copy of its volume, and returns the number of files.
///
/// # Errors
/// If no volume is available, or it cannot be copied.
pub async fn copy_volume(namespace: &Namespace, from: &str, to: &str) -> anyhow::Result<u32> {
    let claims = namespace.api::<PersistentVolumeClaim>();
    let spec = claims.get(from).await?.spec.context("the claim has no spec")?;
    let claim = json!({
        "metadata": {"name": to},
        "spec": {
            "accessModes": spec.access_modes, "resources": spec.resources,
            "storageClassName": spec.storage_class_name,
        },
    });
    claims.create(&PostParams::default(), &serde_json::from_value(claim)?).await?;
    let container = json!({
        "image": Image::Tools.name()?,
        "command": ["/e2e-copy", "/from", "/to"],
        "volumeMounts": [{"name": "from", "mountPath": "/from"}, {"name": "to", "mountPath": "/to"}],
    });
    let volumes = json!([
        {"name": "from", "persistentVolumeClaim": {"claimName": from}},
        {"name": "to", "persistentVolumeClaim": {"claimName": to}},
    ]);
    let copier = format!("copy-to-{to}");
    let (copied, said) = once(namespace, &copier, container, &volumes).await?;
    // A claim is not deleted before all pods that have used it, ended ones included.
    namespace.api::<Pod>().delete(&copier, &DeleteParams::default()).await?;
    ensure!(copied, "{from} is not copied to {to}: {said}");
    let files = said.split_once(' ').and_then(|(files, _)| files.parse().ok());
    files.with_context(|| format!("the copier does not report the number of files: {said}"))
}

/// Deletes a claim that no pod uses. Its storage class decides about the volume.
///
/// # Errors
/// If the claim still exists after some time.
pub async fn delete_volume(namespace: &Namespace, claim: &str) -> anyhow::Result<()> {
    let claims = namespace.api::<PersistentVolumeClaim>();
    claims.delete(claim, &DeleteParams::default()).await?;
    eventually(Duration::from_secs(60), async || {
        ensure!(claims.get_opt(claim).await?.is_none(), "the claim {claim} still exists");
        Ok(())
    })
    .await
}
