//! What the operator calls what it makes, and how it marks it. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::BTreeMap;

use kube::ResourceExt;

use crate::api::TaskPipeline;

/// Who writes all but the replica count.
pub(crate) const FIELD_MANAGER: &str = "taskpipeline-operator";

/// Who writes the replica count, and only where it is asked for: whatever else scales is left alone.
pub(crate) const REPLICAS_MANAGER: &str = "taskpipeline-operator-replicas";

/// The pipeline that a pod belongs to.
pub(crate) const PIPELINE_LABEL: &str = "taskpipeline.dev/pipeline";

/// What all objects of a pipeline are called.
pub(crate) fn owned(pipeline: &str) -> String {
    format!("{pipeline}-processor")
}

/// What tells a pipeline's pods from all others; never changed.
pub(crate) fn selector(pipeline: &TaskPipeline) -> BTreeMap<String, String> {
    let labels = [("app.kubernetes.io/name", "taskpipeline"), ("app.kubernetes.io/component", "processor")];
    let mut labels: BTreeMap<_, _> =
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    labels.insert(PIPELINE_LABEL.to_owned(), pipeline.name_any());
    labels
}

/// The labels of everything that belongs to a pipeline.
pub(crate) fn labels(pipeline: &TaskPipeline) -> BTreeMap<String, String> {
    let mut labels = selector(pipeline);
    labels.insert("app.kubernetes.io/instance".to_owned(), pipeline.name_any());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned());
    labels
}
