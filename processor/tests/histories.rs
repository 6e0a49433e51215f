//! Histories of faults. After every crash, stop, wrong answer and delay, KV equals an in-order replay of the stream.
//! The dead letters equal the invalid events.
//!
//! Every test run plays some of them; `cargo xtask soak` plays more by the same code. The test prints the seeds:
//! `TASKPIPELINE_SEED=7 TASKPIPELINE_HISTORIES=1 cargo xtask test --only test` begins with 7.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use taskpipeline_testkit::history::{Series, Servers};

/// Reads a number from the environment. An invalid number is an error, and is not ignored.
fn told(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, got {text:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn faulted_histories_end_with_kv_equal_to_the_replay() {
    let minutes = told("TASKPIPELINE_SOAK_MINUTES");
    let histories = told("TASKPIPELINE_HISTORIES").map(|count| usize::try_from(count).unwrap());
    let series = Series {
        // The first seed of every run: six seeds from here cover all shapes.
        first: told("TASKPIPELINE_SEED").unwrap_or(2_002),
        least: if minutes.is_some() { 1 } else { histories.unwrap_or(6) },
        most: histories.unwrap_or(if minutes.is_some() { usize::MAX } else { 20 }),
        within: minutes.map_or(Duration::from_secs(180), |minutes| Duration::from_secs(60 * minutes)),
        at_a_time: told("TASKPIPELINE_AT_A_TIME").map_or(3, |count| usize::try_from(count).unwrap()),
        servers: told("TASKPIPELINE_SERVERS").map(|count| match count {
            1 => Servers::One,
            3 => Servers::Three,
            other => panic!("TASKPIPELINE_SERVERS must be 1 or 3, got {other}"),
        }),
    };
    println!("histories from seed {}", series.first);
    let totals = series.play().await.unwrap();
    println!("{totals}");
    if totals.histories >= 200 {
        totals.ensure_each(20).unwrap();
    } else if totals.histories >= 6 {
        let kinds = totals.kinds(1);
        assert!(kinds >= 20, "only {kinds} kinds of faults happened");
        if series.servers.is_none() {
            let (three, all) = (totals.on_three_servers, totals.histories);
            assert!(three > 0 && three < all, "{three} of {all} histories on three nats-servers");
        }
    }
}
