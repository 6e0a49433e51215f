//! The read-only edge: shows the tasks that lie in Cloudflare KV, as pages for people and as JSON.
//!
//! One `axum` router over a [`TaskReader`] runs in workerd (the `worker` module, wasm only) and natively
//! (tests and the demo, over a [`MemoryReader`]). Nothing here writes to KV or knows how tasks came there.

mod assets;
mod cached;
mod catalog;
mod correlation;
mod cursor;
mod errors;
mod headers;
mod links;
mod memory;
mod query;
mod reader;
mod report;
mod routes;
mod views;
#[cfg(target_arch = "wasm32")]
mod worker;

pub use cached::{Cached, ListCache};
pub use memory::MemoryReader;
pub use reader::{KeyPage, ListedKey, MAX_BULK_KEYS, MAX_LIST_KEYS, ReadError, TaskReader};
pub use routes::router;
