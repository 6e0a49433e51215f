//! Lists that the Worker caches in real workerd.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::{Duration, Instant};

use anyhow::ensure;
use reqwest::StatusCode;
use taskpipeline_e2e::Edge;
use taskpipeline_testkit::{Up, created, eventually, publish};

/// How long the Worker caches a list here, in seconds.
const REMEMBERED: u64 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_remembered_for_as_long_as_was_said_and_a_task_is_not() {
    let up = Up::start_with(&["--list-cache", &REMEMBERED.to_string()]).await.unwrap();
    let edge = Edge::of(&up);
    let nats = async_nats::connect(up.nats_url()).await.unwrap();
    let listed = async |query: &str| {
        let (_, list) = edge.json(&format!("/api/tasks{query}")).await?;
        let ids = list["tasks"].as_array().into_iter().flatten();
        anyhow::Ok(ids.map(|task| task["id"].to_string()).collect::<Vec<_>>())
    };
    assert!(listed("").await.unwrap().is_empty());
    let remembered = Instant::now();
    publish(&nats, "created", &created("a")).await.unwrap();
    eventually(Duration::from_secs(10), async || {
        let (code, body) = edge.get("/tasks/a").await?;
        ensure!(code == StatusCode::OK, "{code} {body}");
        Ok(())
    })
    .await
    .unwrap();
    let mut asked = 0;
    // Other filters and limits share the call to KV.
    for query in ["", "?limit=7", "?status=pending", "?status=cancelled&limit=1"].iter().cycle().take(12) {
        let ids = listed(query).await.unwrap();
        assert!(ids.is_empty(), "{query} was listed again: {ids:?}");
        asked += 1;
    }
    let took = remembered.elapsed();
    assert!(
        took < Duration::from_secs(REMEMBERED - 1),
        "it took {took:?}: the test proves nothing about the cache"
    );
    let seen = eventually(Duration::from_secs(REMEMBERED + 10), async || {
        ensure!(listed("").await?.len() == 1, "not listed yet");
        Ok(remembered.elapsed())
    })
    .await
    .unwrap();
    assert!(seen >= Duration::from_secs(REMEMBERED - 1), "it was listed again after {seen:?}, too early");
    println!("{asked} requests got the cached list, the task's own page was there; listed after {seen:?}");
}
