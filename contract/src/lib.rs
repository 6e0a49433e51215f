//! What producers, the processor and the edge agree on: the task, its three events and how they are
//! validated, the KV key a task is stored under and the metadata stored beside it.
//!
//! No I/O, no clock and no async here; the crate builds for every target, wasm32 included. Whoever needs
//! one of these formats takes it from here, so that no two sides can come to differ.

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
