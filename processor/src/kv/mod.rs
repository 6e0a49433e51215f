//! Cloudflare KV over its REST API v4: what is sent, what an answer means, and how often one may ask.
//!
//! Nothing in here decides what is written or whether a failure is tried again.

mod answer;
mod budget;
mod client;

pub use answer::Failure;
pub use budget::{Budget, RequestBudget};
pub use client::{ClientError, MAX_KEYS_PER_READ, Namespace, Pair};
