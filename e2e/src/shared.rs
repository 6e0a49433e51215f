//! Shares one expensive thing between all tests of a program.

use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};

use anyhow::anyhow;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// A function that creates the thing.
pub type Make<T> = fn() -> Pin<Box<dyn Future<Output = anyhow::Result<T>>>>;

/// A thing that the tests of a program share.
///
/// The first test that uses it creates it, and the last one drops it. So no process outlives the tests, as it would
/// in a `static`. The tests also share one runtime: tasks of a `#[tokio::test]` would end with that test.
#[derive(Debug)]
pub struct Shared<T> {
    make: Make<T>,
    made: Mutex<Weak<T>>,
    runtime: OnceLock<Runtime>,
}

impl<T> Shared<T> {
    /// Begins without the thing.
    #[must_use]
    pub const fn new(make: Make<T>) -> Self {
        Self { make, made: Mutex::const_new(Weak::new()), runtime: OnceLock::new() }
    }

    /// Runs a test with the thing.
    ///
    /// # Errors
    /// If the thing cannot be created, or the test fails.
    pub fn with(&self, test: impl AsyncFnOnce(&T) -> anyhow::Result<()>) -> anyhow::Result<()> {
        // Two threads may create it at once; the second thing is dropped unused.
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
