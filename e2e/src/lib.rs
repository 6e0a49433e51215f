//! Shared parts of the tests of the whole product: a client of the edge, the local KV behind it, a running product
//! for all tests of a program, and docker-compose.yml.

mod edge;
mod project;
mod shared;

pub use edge::Edge;
pub use project::Project;
pub use shared::{Make, Shared};
