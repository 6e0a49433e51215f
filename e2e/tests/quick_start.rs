//! The quick start of a new user: `cargo xtask up`, and three events by plain NATS publish. After each, the test
//! checks the pages and the JSON on real workerd, and takes a picture of every page.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use reqwest::StatusCode;
use serde_json::{Value, json};
use taskpipeline_e2e::Edge;
use taskpipeline_testkit::{Chromium, Up, View, eventually};

const SOON: Duration = Duration::from_secs(15);

const CREATED: &str = r#"{"correlationId": "test-001", "data": {"id": "task-1", "title": "My First Task", "description": "This is a test task", "status": "pending"}}"#;
const UPDATED: &str = r#"{"correlationId": "test-002", "data": {"id": "task-1", "status": "completed", "title": "My First Task (Done!)"}}"#;
const DELETED: &str = r#"{"correlationId": "test-003", "data": {"id": "task-1"}}"#;

/// Waits until all four views show the task like this.
async fn shows(edge: &Edge, title: &str, description: &str, status: &str, label: &str) -> Value {
    eventually(SOON, async || {
        let (code, task) = edge.json("/api/tasks/task-1").await?;
        ensure!(code == StatusCode::OK && task["title"] == title, "{code} {task}");
        ensure!(task["description"] == description && task["status"] == status, "{task}");

        let (code, list) = edge.json("/api/tasks").await?;
        ensure!(code == StatusCode::OK && list["tasks"] == json!([task]), "{code} {list}");

        let (code, page) = edge.text("/").await?;
        ensure!(code == StatusCode::OK && page.contains(title) && page.contains(label), "{code} {page}");

        let (code, page) = edge.text("/tasks/task-1").await?;
        ensure!(code == StatusCode::OK && page.contains(title) && page.contains(label), "{code} {page}");
        ensure!(page.contains(description), "{page}");
        Ok(task)
    })
    .await
    .unwrap()
}

async fn pictures(browser: &Chromium, edge: &Edge, of: &str) {
    for (view, kind) in [(View::LIGHT, "light"), (View::DARK, "dark"), (View::NARROW, "narrow")] {
        let tab = browser.tab().await.unwrap();
        tab.look(view).await.unwrap();
        for (path, page) in [("/", "list"), ("/tasks/task-1", "task")] {
            tab.goto(&edge.url(path)).await.unwrap();
            let file = tab.screenshot(&format!("quick-start-{of}-{page}-{kind}")).await.unwrap();
            println!("picture: {}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_of_the_quick_start_shows_on_all_pages_in_workerd() {
    let browser = Chromium::start().await.unwrap();
    let mut up = Up::start().await.unwrap();
    let edge = Edge::of(&up);
    let nats = async_nats::connect(up.nats_url()).await.unwrap();
    let (code, page) = edge.text("/").await.unwrap();
    assert!(code == StatusCode::OK && page.contains("No tasks yet"), "{page}");

    nats.publish("tasks.created", CREATED.into()).await.unwrap();
    let created = shows(&edge, "My First Task", "This is a test task", "pending", "Pending").await;
    assert_eq!(created["createdAt"], created["updatedAt"]);
    pictures(&browser, &edge, "created").await;

    nats.publish("tasks.updated", UPDATED.into()).await.unwrap();
    let updated =
        shows(&edge, "My First Task (Done!)", "This is a test task", "completed", "Completed").await;
    assert_eq!(updated["createdAt"], created["createdAt"]);
    assert!(updated["updatedAt"].as_str() > created["updatedAt"].as_str());
    pictures(&browser, &edge, "updated").await;

    nats.publish("tasks.deleted", DELETED.into()).await.unwrap();
    eventually(SOON, async || {
        let (code, list) = edge.json("/api/tasks").await?;
        ensure!(code == StatusCode::OK && list["tasks"] == json!([]), "{code} {list}");
        let (code, answer) = edge.json("/api/tasks/task-1").await?;
        ensure!(code == StatusCode::NOT_FOUND, "{code} {answer}");
        let (code, page) = edge.text("/").await?;
        ensure!(code == StatusCode::OK && page.contains("No tasks yet"), "{code} {page}");
        let (code, page) = edge.text("/tasks/task-1").await?;
        ensure!(code == StatusCode::NOT_FOUND && page.contains("Task not found"), "{code} {page}");
        Ok(())
    })
    .await
    .unwrap();
    pictures(&browser, &edge, "deleted").await;

    for step in ["Received tasks.created", "Attempt 1/5", "PUT tasks:task-1 successful"] {
        let line = format!("[test-001] {step}");
        assert!(up.process().lines().iter().any(|shown| shown.contains(&line)), "{line} is not in the log");
    }

    let status = up.interrupt().await.unwrap();
    assert!(status.success(), "{status}\n{}", up.process().tail());
    for port in up.ports() {
        let left = std::net::TcpStream::connect(("127.0.0.1", port));
        assert!(left.is_err(), "something still listens on port {port}");
    }
}
