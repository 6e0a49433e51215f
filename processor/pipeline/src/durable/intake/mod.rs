//! The way from the stream to the ledger: pulls events, takes them in, retries, and sets unreadable
//! messages aside.

pub(crate) mod age;
pub(crate) mod ingest;
pub(crate) mod mark;
pub(crate) mod pending;
pub(crate) mod pull;
pub(crate) mod retry_queue;
pub(crate) mod salvage;
pub(crate) mod storage;
pub(crate) mod stuck;
pub(crate) mod supervisor;
pub(crate) mod suspects;
pub(crate) mod waiting;
