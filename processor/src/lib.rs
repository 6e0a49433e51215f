//! Task events from NATS into Cloudflare KV.
//!
//! The data flows `pipeline::source -> ingest -> ledger -> projector -> kv`; what cannot go on goes to
//! `pipeline::dead_letters`. Decisions (fold, classify, pace, when to retry) are pure and apart from I/O.

pub mod api;
pub mod check;
pub mod config;
pub mod crd;
pub mod dead_letters;
pub mod kv;
pub mod live;
pub mod operator;
pub mod pipeline;
mod producer;
pub mod publish;
pub mod resync;
pub mod retry;
pub mod telemetry;
