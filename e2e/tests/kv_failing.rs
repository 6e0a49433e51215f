//! KV itself fails on real workerd: the test overwrites its files while it runs.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::io::{Seek, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use reqwest::StatusCode;
use taskpipeline_e2e::Edge;
use taskpipeline_testkit::{Up, created, eventually, publish};

/// Overwrites the beginning of every database below this folder with noise, and returns their number.
fn spoil(folder: &Path) -> usize {
    let mut spoilt = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            spoilt += spoil(&path);
        } else if path.to_string_lossy().contains(".sqlite") {
            let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.rewind().unwrap();
            file.write_all(&[0xa5; 64 * 1024]).unwrap();
            spoilt += 1;
        }
    }
    spoilt
}

#[tokio::test(flavor = "multi_thread")]
async fn when_kv_fails_every_answer_that_needs_it_is_a_503_that_leaks_nothing() {
    let up = Up::start().await.unwrap();
    let edge = Edge::of(&up);
    let nats = async_nats::connect(up.nats_url()).await.unwrap();
    publish(&nats, "created", &created("a")).await.unwrap();
    let paths = ["/", "/tasks/a", "/api/tasks", "/api/tasks/a", "/health"];
    eventually(Duration::from_secs(15), async || {
        for path in paths {
            let (code, body) = edge.get(path).await?;
            ensure!(code == StatusCode::OK, "{path}: {code} {body}");
        }
        Ok(())
    })
    .await
    .unwrap();

    let spoilt = spoil(&up.data().join("kv"));
    for path in paths {
        let (code, body) = edge.get(path).await.unwrap();
        println!("{spoilt} files spoilt, {path}: {code}");
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE, "{path}: {body}");
        for inside in ["sqlite", "SQLITE", "miniflare", "wasm", "panicked", " at "] {
            assert!(!body.contains(inside), "{path} reveals {inside}: {body}");
        }
    }
    assert!(spoilt > 0, "no file was spoilt");
    let (code, _) = edge.get("/no-such-page").await.unwrap();
    assert_eq!(code, StatusCode::NOT_FOUND, "requests without KV still work");
}
