//! One costly thing for all tests of a program.

use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};

use anyhow::anyhow;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// How a thing is made.
pub type Make<T> = fn() -> Pin<Box<dyn Future<Output = anyhow::Result<T>>>>;

/// A thing that the tests of a program share: made by the first that uses it and dropped by the last, so
/// that no process outlives the tests, as it would in a `static`.
///
/// The tests run on one runtime too: what a `#[tokio::test]` spawns ends with that test.
#[derive(Debug)]
pub struct Shared<T> {
    make: Make<T>,
    made: Mutex<Weak<T>>,
    runtime: OnceLock<Runtime>,
}

impl<T> Shared<T> {
    /// Makes nothing yet.
    #[must_use]
    pub const fn new(make: Make<T>) -> Self {
        Self { make, made: Mutex::const_new(Weak::new()), runtime: OnceLock::new() }
    }

    /// Runs a test with it.
    ///
    /// # Errors
    /// Where it cannot be made, and what the test fails with.
    pub fn with(&self, test: impl AsyncFnOnce(&T) -> anyhow::Result<()>) -> anyhow::Result<()> {
        // Two may be made at once; the one that comes second is dropped unused.
        if self.runtime.get().is_none() {
            drop(self.runtime.set(Runtime::new()?));
        }
        let runtime = self.runtime.get().ok_or_else(|| anyhow!("no runtime"))?;
        runtime.block_on(async {
            let thing = self.get().await?;
            test(&thing).await
        })
    }

    async fn get(&self) -> anyhow::Result<Arc<T>> {
        let mut made = self.made.lock().await;
        if let Some(thing) = made.upgrade() {
            return Ok(thing);
        }
        let thing = Arc::new((self.make)().await?);
        *made = Arc::downgrade(&thing);
        Ok(thing)
    }
}
