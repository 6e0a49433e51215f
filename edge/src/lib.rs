//! The read-only edge: shows the tasks in Cloudflare KV, as pages for people and as JSON for programs.
//!
//! One `axum` router over a [`TaskReader`] runs in workerd, with the `worker` module (wasm only). Tests and the
//! simulator run it natively. The crate never writes to KV.

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
