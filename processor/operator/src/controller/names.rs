//! The names and labels of the objects that the operator creates. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::BTreeMap;

use kube::ResourceExt;

use crate::api::TaskPipeline;

/// The field manager of everything except the replica count.
pub(crate) const FIELD_MANAGER: &str = "taskpipeline-operator";

/// The field manager of the replica count. It writes only a requested count, so that other scalers keep theirs.
pub(crate) const REPLICAS_MANAGER: &str = "taskpipeline-operator-replicas";

/// The label with the pipeline of a pod.
pub(crate) const PIPELINE_LABEL: &str = "taskpipeline.dev/pipeline";

/// The name of all objects of a pipeline.
pub(crate) fn owned(pipeline: &str) -> String {
    format!("{pipeline}-processor")
}

/// The labels that select a pipeline's pods. Never change them, because selectors are immutable.
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
