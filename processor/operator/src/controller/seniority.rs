//! The order of age of the pipelines in a namespace, so that a new pipeline takes nothing from an older one. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::api::TaskPipeline;

/// The age as a sort key: the creation time, and the uid for pipelines of the same second.
pub(crate) fn age(pipeline: &TaskPipeline) -> (Option<Time>, Option<String>) {
    (pipeline.creation_timestamp(), pipeline.uid())
}

/// The older pipelines of the same namespace.
pub(crate) fn older<'a>(
    pipeline: &'a TaskPipeline,
    all: &'a [Arc<TaskPipeline>],
) -> impl Iterator<Item = &'a Arc<TaskPipeline>> {
    let own = age(pipeline);
    all.iter().filter(move |other| other.namespace() == pipeline.namespace() && age(other) < own)
}
