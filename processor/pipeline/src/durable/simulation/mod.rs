//! Simulates the code of mode `Durable` that decides: several replicas with their own clocks, NATS on one server or
//! three, one KV namespace or two.
//!
//! Faults happen in any order. Answers and acks are lost, and requests land late or never. Processes are killed,
//! stopped or cut off. Streams are recreated or restored, limits refuse writes, and settings change.
//!
//! No part of the pipeline is written a second time here. Intake, ledger, control record, projection and schedule are
//! the shipped code. Each of their requests to NATS or KV is a call in the world. It waits until a step lets it
//! proceed (see [`calls`]). The answers of NATS and KV have the format of the wire, and the shipped code reads them.
//!
//! `SIMULATION_SEED`, `SIMULATION_HISTORIES` and `SIMULATION_THREADS` select the histories (see [`runner`]).

mod bucket;
mod calls;
mod checks;
mod dice;
mod differential;
mod events;
mod intake;
mod kv;
mod net;
mod projector;
mod replica;
mod runner;
mod scenes;
pub(crate) mod settings;
mod steps;
mod truth;
mod world;

use self::runner::{History, Options};

/// The default number of histories.
const HISTORIES: u64 = 300;

#[test]
fn after_all_faults_kv_is_the_replay_and_until_then_settled_is_settled() {
    Options::from_env(HISTORIES).play();
}

#[test]
fn one_number_decides_all_of_a_history() {
    for seed in 1..20 {
        let (one, other) = (History::draw(seed).play(true), History::draw(seed).play(true));
        for (n, (one, other)) in one.trace.iter().zip(&other.trace).enumerate() {
            assert_eq!(one, other, "seed {seed}, line {n}");
        }
    }
}
