//! Plays histories: real replicas, a real nats-server and the simulator, with seeded random events and faults.
//!
//! A checker compares the content of KV at the end with an in-order replay of the stream.
//!
//! ```text
//! seed ─▶ plan ─▶ run ─▶ events in the stream ─▶ capture ─▶ replay ─▶ expected ─┐
//!                  └───▶ faults                     KV, dead letters ─▶ found ──┴▶ check
//! ```
//!
//! Nothing here may use the processor's code: a mistake in both would stay unnoticed.

mod capture;
mod check;
mod crowd;
mod dice;
mod edit;
mod edit_lane;
mod events;
mod fault;
mod fleet;
mod hostile;
mod letters;
mod moment;
mod nats_fault;
mod nats_lane;
mod plan;
mod publish;
mod quiet;
mod replay;
mod run;
mod series;
mod servers;
mod settings_file;
mod settle;
mod stage;
mod strike;
mod timeline;

pub use moment::Servers;
pub use plan::Plan;
pub use run::{Report, run};
pub use series::{Series, Totals};
