//! Which of a namespace's pipelines were there first. Whoever may make pipelines takes nothing from those that are there. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::api::TaskPipeline;

/// When it was made; of those that were made in the same second, one is the older.
pub(crate) fn age(pipeline: &TaskPipeline) -> (Option<Time>, Option<String>) {
    (pipeline.creation_timestamp(), pipeline.uid())
}

/// Those of its namespace that were made before it.
pub(crate) fn older<'a>(
    pipeline: &'a TaskPipeline,
    all: &'a [Arc<TaskPipeline>],
) -> impl Iterator<Item = &'a Arc<TaskPipeline>> {
    let own = age(pipeline);
    all.iter().filter(move |other| other.namespace() == pipeline.namespace() && age(other) < own)
}
