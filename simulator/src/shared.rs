//! The state that requests, the control endpoint and tests share: a [`World`], which each reset replaces.
//!
//! A request uses the world of its arrival, so that a request in flight changes nothing after a reset. Do not keep a
//! world's lock across a wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::Config;
use crate::active::Active;
use crate::answer::Reply;
use crate::call::Call;
use crate::fault::Rule;
use crate::keys::{KeyId, Keys};
use crate::landings::{Landing, Landings};
use crate::operation::Operation;
use crate::rate_limit::{Tally, Traffic};
use crate::request_log::{Number, RequestLog};
use crate::seen::{Seen, Watch};
use crate::store::{Entry, Store, Stored, View};

#[derive(Debug)]
pub(crate) struct Shared {
    config: Arc<Config>,
    world: Mutex<Arc<World>>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        let config = Arc::new(config);
        Self { world: Mutex::new(Arc::new(World::new(Arc::clone(&config)))), config }
    }

    /// The current world.
    pub(crate) fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the world with an empty one.
    pub(crate) fn reset(&self) {
        let new = Arc::new(World::new(Arc::clone(&self.config)));
        let old = std::mem::replace(&mut *self.world.lock().unwrap_or_else(PoisonError::into_inner), new);
        // Dropped after the lock is released, because a large world takes long to drop.
        drop(old);
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: Arc<Config>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) keys: Keys,
    pub(crate) store: Store,
    pub(crate) traffic: Traffic,
    pub(crate) watch: Watch,
    /// The tokens that are admitted.
    pub(crate) tokens: Vec<String>,
    pub(crate) rules: Active,
    pub(crate) log: RequestLog,
    pub(crate) landings: Landings,
}

impl World {
    fn new(config: Arc<Config>) -> Self {
        let landings = if config.record_landings { config.most_landings } else { 0 };
        let inner = Inner {
            keys: Keys::default(),
            store: Store::default(),
            traffic: Traffic::since(Instant::now()),
            watch: Watch::default(),
            tokens: vec![config.token.clone()],
            rules: Active::default(),
            log: RequestLog::default(),
            landings: Landings::keeping(landings),
        };
        Self { config, inner: Mutex::new(inner) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub(crate) fn seen(&self) -> Seen {
        let Tally { most_in_sliding, most_in_fixed, refused_by_sliding, refused_by_fixed } =
            self.traffic.tally();
        Seen {
            most_in_sliding_window: most_in_sliding,
            most_in_fixed_window: most_in_fixed,
            throttled_by_sliding_window: refused_by_sliding,
            throttled_by_fixed_window: refused_by_fixed,
            ..self.watch.seen()
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Stored> {
        let id = self.keys.find(key)?;
        self.store.at(View::of_now()).get(id).map(Entry::stored)
    }

    pub(crate) fn seed(&mut self, key: &str, entry: Entry) {
        let id = self.keys.number(&Arc::from(key));
        self.store.seed(id, entry);
    }

    pub(crate) fn keys(&mut self) -> Vec<String> {
        self.store.keys(&mut self.keys)
    }

    pub(crate) fn landings(&self, from: u64, most: usize) -> Vec<Landing> {
        self.landings.starting_with(from, most, &self.keys)
    }

    /// Notes a parsed request. Returns the numbers of its keys, in their order.
    pub(crate) fn begin(
        &mut self,
        number: Number,
        operation: Operation,
        call: &Call,
        body_bytes: usize,
    ) -> Vec<KeyId> {
        let ids: Vec<_> = call.keys().map(|key| self.keys.number(key)).collect();
        self.watch.begin(operation, &ids, body_bytes);
        self.log.keys(number, call.keys().map(|key| &**key));
        ids
    }

    /// Notes the rule that applied to a request.
    pub(crate) fn applied(&mut self, number: Number, rule: &Rule) {
        self.watch.applied(rule.name());
        self.log.fault(number, rule.name());
    }

    pub(crate) fn answered(&mut self, number: Number, operation: Operation, reply: &Reply) {
        self.watch.answered(operation, reply.status());
        self.log.answered(number, reply.status());
    }
}
