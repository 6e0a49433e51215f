//! The pages of the edge over the simulator's data, for demos without a Cloudflare account.
//!
//! A write is visible at once, which Cloudflare does not promise.

use std::collections::HashMap;
use std::sync::Arc;

use taskpipeline_edge::{KeyPage, ListedKey, ReadError, TaskReader};

use crate::shared::{Inner, Shared};
use crate::store::{Entry, View};

/// The [`TaskReader`] of the edge over the simulator's data.
pub(crate) struct Pages(pub(crate) Arc<Shared>);

impl TaskReader for Pages {
    async fn list(&self, prefix: &str, limit: usize, cursor: Option<&str>) -> Result<KeyPage, ReadError> {
        let world = self.0.world();
        let Inner { store, keys, .. } = &mut *world.lock();
        let page = store.list(keys, prefix, cursor.unwrap_or_default(), limit, View::of_now());
        let listed = |(name, metadata): (&str, Option<&serde_json::value::RawValue>)| ListedKey {
            name: name.to_owned(),
            metadata: metadata.map(|metadata| metadata.get().to_owned()),
        };
        let cursor = page.cursor.map(str::to_owned);
        Ok(KeyPage { keys: page.keys.into_iter().map(listed).collect(), cursor })
    }

    async fn get(&self, key: &str) -> Result<Option<String>, ReadError> {
        let world = self.0.world();
        let inner = world.lock();
        Ok(value(&inner, key))
    }

    async fn get_bulk(&self, keys: &[String]) -> Result<HashMap<String, String>, ReadError> {
        let world = self.0.world();
        let inner = world.lock();
        Ok(keys.iter().filter_map(|key| Some((key.clone(), value(&inner, key)?))).collect())
    }
}

fn value(inner: &Inner, key: &str) -> Option<String> {
    let id = inner.keys.find(key)?;
    let Entry { value, .. } = inner.store.at(View::of_now()).get(id)?;
    Some(String::from_utf8_lossy(value).into_owned())
}
