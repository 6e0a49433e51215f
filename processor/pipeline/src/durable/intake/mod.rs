//! From the stream to the ledger: pulls, takes in, retries, and sets aside.

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
