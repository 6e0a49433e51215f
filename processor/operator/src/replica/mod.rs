//! How a replica follows its TaskPipeline, in a cluster or in a file, and reports its conditions in the status.

mod conditions;
pub mod file;
pub mod report;
pub mod resource;
