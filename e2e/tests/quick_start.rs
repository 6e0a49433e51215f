//! The quick start as a newcomer does it: `cargo xtask up`, three events by plain NATS publish, and after
//! each the pages and the JSON on real workerd, with a picture of every page.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use reqwest::StatusCode;
use scraper::{Html, Selector};
use serde_json::{Value, json};
use taskpipeline_testkit::{Up, View, eventually, http, screenshot};

const SOON: Duration = Duration::from_secs(15);

const CREATED: &str = r#"{"correlationId": "test-001", "data": {"id": "task-1", "title": "My First Task", "description": "This is a test task", "status": "pending"}}"#;
const UPDATED: &str = r#"{"correlationId": "test-002", "data": {"id": "task-1", "status": "completed", "title": "My First Task (Done!)"}}"#;
const DELETED: &str = r#"{"correlationId": "test-003", "data": {"id": "task-1"}}"#;

struct Edge {
    client: reqwest::Client,
    url: String,
}

impl Edge {
    async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let response = self.client.get(format!("{}{path}", self.url)).send().await?;
        Ok((response.status(), response.text().await?))
    }

    async fn json(&self, path: &str) -> anyhow::Result<(StatusCode, Value)> {
        let (status, text) = self.get(path).await?;
        Ok((status, serde_json::from_str(&text)?))
    }

    /// What a person reads on a page.
    async fn text(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let (status, page) = self.get(path).await?;
        let page = Html::parse_document(&page);
        let main = Selector::parse("main").unwrap();
        let text: String = page.select(&main).flat_map(|main| main.text()).collect();
        Ok((status, text.split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    /// Waits until all four views show the task like this.
    async fn shows(&self, title: &str, description: &str, status: &str, label: &str) -> Value {
        eventually(SOON, async || {
            let (code, task) = self.json("/api/tasks/task-1").await?;
            ensure!(code == StatusCode::OK && task["title"] == title, "{code} {task}");
            ensure!(task["description"] == description && task["status"] == status, "{task}");

            let (code, list) = self.json("/api/tasks").await?;
            ensure!(code == StatusCode::OK && list["tasks"] == json!([task]), "{code} {list}");

            let (code, page) = self.text("/").await?;
            ensure!(code == StatusCode::OK && page.contains(title) && page.contains(label), "{code} {page}");

            let (code, page) = self.text("/tasks/task-1").await?;
            ensure!(code == StatusCode::OK && page.contains(title) && page.contains(label), "{code} {page}");
            ensure!(page.contains(description), "{page}");
            Ok(task)
        })
        .await
        .unwrap()
    }

    async fn pictures(&self, of: &str) {
        for (path, page) in [("/", "list"), ("/tasks/task-1", "task")] {
            for (view, kind) in [(View::LIGHT, "light"), (View::DARK, "dark"), (View::NARROW, "narrow")] {
                let name = format!("quick-start-{of}-{page}-{kind}");
                let file = screenshot(&format!("{}{path}", self.url), &name, view).await.unwrap();
                println!("picture: {}", file.display());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_of_the_quick_start_shows_on_all_pages_in_workerd() {
    let mut up = Up::start().await.unwrap();
    let edge = Edge { client: http(), url: up.edge_url() };
    let nats = async_nats::connect(up.nats_url()).await.unwrap();
    let (code, page) = edge.text("/").await.unwrap();
    assert!(code == StatusCode::OK && page.contains("No tasks yet"), "{page}");

    nats.publish("tasks.created", CREATED.into()).await.unwrap();
    let created = edge.shows("My First Task", "This is a test task", "pending", "Pending").await;
    assert_eq!(created["createdAt"], created["updatedAt"]);
    edge.pictures("created").await;

    nats.publish("tasks.updated", UPDATED.into()).await.unwrap();
    let updated = edge.shows("My First Task (Done!)", "This is a test task", "completed", "Completed").await;
    assert_eq!(updated["createdAt"], created["createdAt"]);
    assert!(updated["updatedAt"].as_str() > created["updatedAt"].as_str());
    edge.pictures("updated").await;

    nats.publish("tasks.deleted", DELETED.into()).await.unwrap();
    eventually(SOON, async || {
        let (code, list) = edge.json("/api/tasks").await?;
        ensure!(code == StatusCode::OK && list["tasks"] == json!([]), "{code} {list}");
        let (code, answer) = edge.json("/api/tasks/task-1").await?;
        ensure!(code == StatusCode::NOT_FOUND, "{code} {answer}");
        let (code, page) = edge.text("/").await?;
        ensure!(code == StatusCode::OK && page.contains("No tasks yet"), "{code} {page}");
        let (code, page) = edge.text("/tasks/task-1").await?;
        ensure!(code == StatusCode::NOT_FOUND && page.contains("There is no such task"), "{code} {page}");
        Ok(())
    })
    .await
    .unwrap();
    edge.pictures("deleted").await;

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
