//! `taskpipeline publish`: publishes an event for a user without another NATS client.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::process::Output;
use std::time::Duration;

use async_nats::jetstream;
use futures_util::StreamExt;
use serde_json::{Value, json};
use taskpipeline_testkit::{NatsServer, program};

async fn publish(nats_url: &str, arguments: &[&str]) -> Output {
    let binary = program("TASKPIPELINE_BIN", &["taskpipeline"]).unwrap();
    let mut command = tokio::process::Command::new(binary);
    command.arg("publish").args(arguments).env("NATS_URL", nats_url).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_made_validated_and_with_the_server_when_the_command_ends() {
    let nats = NatsServer::start().await.unwrap();
    let client = nats.client().await.unwrap();
    let mut events = client.subscribe("tasks.*").await.unwrap();
    client.flush().await.unwrap();

    let flags = ["--id", "a", "--title", "T", "--status", "pending", "--correlation-id", "c-1"];
    let done = publish(&nats.url(), &[&["created"], &flags[..]].concat()).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(
        String::from_utf8(done.stdout).unwrap(),
        "[c-1] published tasks.created for task a and no stream acknowledged it, as in mode Core\n"
    );
    let event = events.next().await.unwrap();
    assert_eq!(event.subject.as_str(), "tasks.created");
    assert_eq!(
        serde_json::from_slice::<Value>(&event.payload).unwrap(),
        json!({"correlationId": "c-1",
            "data": {"id": "a", "title": "T", "description": "", "status": "pending"}})
    );

    let whole = r#"{"correlationId": "c-2", "data": {"id": "a"}}"#;
    assert!(publish(&nats.url(), &["deleted", "--json", whole]).await.status.success());
    assert_eq!(events.next().await.unwrap().payload, whole.as_bytes());

    let stream = jetstream::stream::Config {
        name: "TASKS".to_owned(),
        subjects: vec!["tasks.*".to_owned()],
        ..jetstream::stream::Config::default()
    };
    jetstream::new(client).create_stream(stream).await.unwrap();
    let done = publish(&nats.url(), &["deleted", "--json", whole]).await;
    let said = String::from_utf8(done.stdout).unwrap();
    assert_eq!(said, "[c-2] published tasks.deleted for task a as event 1 of the stream TASKS\n");
    events.next().await.unwrap();

    let refused = publish(&nats.url(), &["updated", "--id", "", "--status", "done"]).await;
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(error.contains("data.id: must be") && error.contains("data.status: must be one of"), "{error}");
    let nothing = tokio::time::timeout(Duration::from_millis(300), events.next()).await;
    assert!(nothing.is_err(), "an invalid event was published");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_nobody_hears_is_an_error() {
    let nats = NatsServer::start().await.unwrap();
    let lost = publish(&nats.url(), &["deleted", "--id", "a"]).await;
    let error = String::from_utf8(lost.stderr).unwrap();
    assert!(!lost.status.success() && lost.stdout.is_empty());
    assert!(error.contains("the event is lost: nothing subscribes to tasks.deleted"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_the_error_says_what_to_look_at() {
    let port = taskpipeline_testkit::free_port().unwrap();
    let refused = publish(&format!("nats://me:hidden@127.0.0.1:{port}"), &["deleted", "--id", "a"]).await;
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(error.contains(&format!("NATS at 127.0.0.1:{port}")) && error.contains("NATS_URL"), "{error}");
    assert!(!error.contains("hidden"), "{error}");
}
