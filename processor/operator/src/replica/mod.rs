//! How a replica follows its TaskPipeline, in a cluster or in a file, and says in its status what it sees.

mod conditions;
pub mod file;
pub mod report;
pub mod resource;
