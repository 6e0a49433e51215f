//! Simulates the code of mode `Durable` that decides: several replicas with clocks of their own, NATS on one server or three, one
//! KV namespace or two. Faults happen in any order. Answers and acks are lost, and requests land late or never. Processes are
//! killed, stopped or cut off. Streams are recreated or restored, limits refuse writes, and settings change.
//!
//! Nothing of the pipeline is written a second time here. Intake, ledger, control record, projection and schedule are those
//! that ship; each question that they put to NATS or KV is a call that waits in the world until a step lets it get on (see
//! [`calls`]). What NATS and KV answer comes as it does over the wire, and is read by the code that ships.
//!
//! `SIMULATION_SEED`, `SIMULATION_HISTORIES` and `SIMULATION_THREADS` say which histories are played (see [`runner`]).

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

/// So many are played where nobody says how many.
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
