//! All that requests, the control endpoint and tests share, behind one lock. It may not be held across a
//! wait.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Config;
use crate::active::Active;
use crate::answer::Reply;
use crate::fault::Rule;
use crate::operation::Operation;
use crate::rate_limit::Window;
use crate::request_log::{Number, RequestLog};
use crate::seen::{Seen, Watch};
use crate::store::Store;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) window: Window,
    pub(crate) watch: Watch,
    pub(crate) rules: Active,
    pub(crate) log: RequestLog,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, inner: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub(crate) fn seen(&self) -> Seen {
        Seen { most_in_a_window: self.window.most(), ..self.watch.seen.clone() }
    }

    pub(crate) fn befell(&mut self, number: Number, rule: &Rule) {
        self.watch.befell(rule.name());
        self.log.fault(number, rule.name());
    }

    pub(crate) fn answered(&mut self, number: Number, operation: Operation, reply: &Reply) {
        self.watch.answered(operation, reply.status());
        self.log.answered(number, reply.status());
    }
}
