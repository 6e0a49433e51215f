//! The watch and the store of pipelines. The store has no managed fields: the operator does not read them, and editors of
//! pipelines could make them as large as the rest.

use futures_util::Stream;
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};

use crate::api::TaskPipeline;

/// The store of pipelines, and the stream of their changes. Polling the stream keeps the store up to date.
pub(crate) fn pipelines(
    api: Api<TaskPipeline>,
) -> (Store<TaskPipeline>, impl Stream<Item = Result<TaskPipeline, watcher::Error>>) {
    kept(watcher(api, watcher::Config::default()))
}

fn kept<K>(
    changes: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, writer) = reflector::store();
    let changes = changes.modify(|object: &mut K| object.managed_fields_mut().clear());
    (store, changes.reflect(writer).applied_objects())
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

    use super::*;

    #[tokio::test]
    async fn managed_fields_are_not_kept() {
        let mut pipeline: TaskPipeline =
            serde_saphyr::from_str(include_str!("../../../tests/pipelines/minimal.yaml")).unwrap();
        pipeline.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default(); 1_000]);
        let changes = [watcher::Event::Init, watcher::Event::InitApply(pipeline.clone())];
        let changes = changes.into_iter().chain([watcher::Event::InitDone, watcher::Event::Apply(pipeline)]);
        let (store, changes) = kept(futures_util::stream::iter(changes.map(Ok)));
        let seen: Vec<_> = changes.map(Result::unwrap).collect().await;
        let kept = store.state();
        assert_eq!((seen.len(), kept.len()), (2, 1));
        let fields = seen.iter().chain(kept.iter().map(AsRef::as_ref)).map(|p| p.managed_fields().len());
        assert_eq!(fields.sum::<usize>(), 0);
    }
}
