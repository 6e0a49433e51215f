//! The formats that producers, the processor and the edge share: the task, its three events and their
//! validation, the KV key of a task and its metadata.
//!
//! The crate has no I/O, no clock and no async code, and builds for every target, wasm32 included. All parts of the
//! project use these types, so that their formats cannot differ.

mod event;
mod fault;
mod kv;
mod task;
mod text;
mod timestamp;
mod wire;

pub use event::{CorrelationId, Event, EventData, EventKind, NewTask, TaskPatch};
pub use fault::{DecodeError, FieldFault};
pub use kv::{KEY_PREFIX, MAX_METADATA_BYTES, TaskKey, TaskMetadata};
pub use task::{Description, Status, Task, TaskId, Title};
pub use text::RuleError;
pub use timestamp::Timestamp;
