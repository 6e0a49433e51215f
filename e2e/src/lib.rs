//! What the tests of the whole product share: a client of the edge, the local KV behind it, and one running
//! product for all tests of a program.

mod edge;
mod shared;

pub use edge::Edge;
pub use shared::{Make, Shared};
