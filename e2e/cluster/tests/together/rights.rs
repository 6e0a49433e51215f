//! The permissions in a release, found out by trying.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use async_nats::jetstream;
use futures_util::StreamExt;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Config};
use serde_json::{Value, json};
use taskpipeline_e2e_cluster::{Chart, Image, Namespace, Release, create, eventually, forward, log_in, once};

const SOON: Duration = Duration::from_secs(60);

/// How long a test waits for an answer that must not come.
const SILENCE: Duration = Duration::from_secs(1);

/// Runs the program once as a pod, and returns whether it succeeded, and its log.
async fn program(namespace: &Namespace, name: &str, args: Value, env: Value) -> (bool, String) {
    let container = json!({"image": Image::Processor.name().unwrap(), "args": args, "env": env});
    once(namespace, name, container, &json!([])).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_or_writes_in_nats_what_is_not_his() {
    let release = Release::install("rights", &Chart::current(), &[]).await.unwrap();
    let namespace = &release.namespace;
    let url = json!({"name": "NATS_URL", "value": "nats://demo-nats:4222"});
    let from = |key: &str| json!({"secretKeyRef": {"name": "demo-nats-producer", "key": key}});
    let user = json!({"name": "NATS_USER", "valueFrom": from("user")});
    let password = json!({"name": "NATS_PASSWORD", "valueFrom": from("password")});
    let event = json!(["publish", "created", "--id", "a-pod", "--title", "A pod", "--status", "pending"]);
    let letters = json!(["dead-letters", "list"]);
    let (refused, allowed, unread) = tokio::join!(
        program(namespace, "without", event.clone(), json!([url])),
        program(namespace, "producer-publishes", event, json!([url, user, password])),
        program(namespace, "producer-reads", letters, json!([url, user, password])),
    );
    println!("without a login: {}a producer: {}and: {}", refused.1, allowed.1, unread.1);
    assert!(!refused.0 && refused.1.to_lowercase().contains("authorization violation"), "{refused:?}");
    assert!(allowed.0, "{allowed:?}");
    assert!(!unread.0, "{unread:?}");

    let server = forward(namespace, "nats-server", 4222).await.unwrap();
    let producer = log_in(namespace, &server, "producer").await.unwrap();
    let processor = log_in(namespace, &server, "processor").await.unwrap();
    let jetstream = jetstream::new(processor.clone());
    let state = async |stream: &str| jetstream.get_stream(stream).await.unwrap().cached_info().state.clone();
    let before = state("TASKS").await;
    let letters = state("TASKS-DEAD-LETTERS").await;

    let (mut producers, mut processors) = (0, 0);
    for subject in [
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.INFO.TASKS",
        "$JS.API.STREAM.MSG.GET.TASKS",
        "$JS.API.STREAM.MSG.GET.TASKS-DEAD-LETTERS",
        "$JS.API.DIRECT.GET.KV_TASKS--tasks-processor",
        "$JS.API.CONSUMER.CREATE.TASKS",
        "$JS.API.CONSUMER.MSG.NEXT.TASKS.tasks-processor-1",
        "$JS.API.STREAM.PURGE.TASKS",
        "$JS.API.STREAM.DELETE.TASKS",
        "$KV.TASKS--tasks-processor.task.x",
        "dead-letters.tasks",
        "tasks.other",
        "tasks",
    ] {
        let asked = tokio::time::timeout(SILENCE, producer.request(subject, r#"{"seq": 1}"#.into()));
        assert!(!matches!(asked.await, Ok(Ok(_))), "a producer got an answer from {subject}");
        producers += 1;
    }
    for subject in [
        "$JS.API.STREAM.DELETE.TASKS",
        "$JS.API.STREAM.UPDATE.OTHER",
        "$JS.API.STREAM.PURGE.TASKS-DEAD-LETTERS",
        "$JS.API.STREAM.PURGE.KV_TASKS--tasks-processor",
        "$JS.API.STREAM.DELETE.KV_TASKS--tasks-processor",
        "$JS.API.STREAM.MSG.DELETE.TASKS",
        "$JS.API.STREAM.CREATE.OTHER",
        "$JS.API.STREAM.INFO.OTHER",
        "$JS.API.ACCOUNT.PURGE.$G",
        "other",
    ] {
        let body = json!({"name": "TASKS", "seq": 1}).to_string();
        let asked = tokio::time::timeout(SILENCE, processor.request(subject, body.into()));
        assert!(!matches!(asked.await, Ok(Ok(_))), "the processor got an answer from {subject}");
        processors += 1;
    }
    // To keep room, the processor needs these permissions: to purge the stream of the events, which removes nothing
    // here, and to change the limit of each stream.
    let purged = jetstream.get_stream("TASKS").await.unwrap().purge().sequence(1).await.unwrap();
    assert_eq!(purged.purged, 0);
    for stream in ["TASKS", "KV_TASKS--tasks-processor", "TASKS-DEAD-LETTERS"] {
        let config = jetstream.get_stream(stream).await.unwrap().cached_info().config.clone();
        assert!(config.max_bytes > 0, "{stream} has no limit");
        jetstream.update_stream(config).await.unwrap();
    }
    let mut heard = Vec::new();
    for subject in [">", "tasks.>", "$KV.>", "_INBOX_PROCESSOR.>", "dead-letters.>", "$JS.EVENT.>"] {
        heard.push((subject, producer.subscribe(subject).await.unwrap()));
    }
    producer.publish("tasks.created", create("seen").into()).await.unwrap();
    producer.publish("tasks.created", "no event".into()).await.unwrap();
    producer.flush().await.unwrap();
    release.kv.task("seen").await.ok();
    for (subject, subscription) in &mut heard {
        let message = tokio::time::timeout(SILENCE, subscription.next()).await;
        assert!(!matches!(message, Ok(Some(_))), "a producer hears {subject}");
    }
    eventually(SOON, async || release.kv.task("seen").await).await.unwrap();
    let (after, after_letters) = (state("TASKS").await, state("TASKS-DEAD-LETTERS").await);
    println!(
        "{producers} requests of a producer and {processors} of the processor went unanswered, {} subscriptions heard nothing; \
         the stream had {} events and has {}, the dead letters {} and {}",
        heard.len(),
        before.messages,
        after.messages,
        letters.messages,
        after_letters.messages
    );
    assert_eq!(after.messages, before.messages + 2, "the two permitted events");
    assert_eq!(after_letters.messages, letters.messages + 1, "the invalid event");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processors_service_account_cannot_read_secrets() {
    let release = Release::install("account", &Chart::current(), &[]).await.unwrap();
    let namespace = &release.namespace;
    let accounts = namespace.api::<ServiceAccount>();
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
    let made =
        accounts.create_token_request("tasks-processor", &PostParams::default(), &request).await.unwrap();
    let mut config = Config::infer().await.unwrap();
    config.auth_info = kube::config::AuthInfo {
        token: Some(made.status.unwrap().token.into()),
        ..kube::config::AuthInfo::default()
    };
    let client = Client::try_from(config).unwrap();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace.name);
    let mut refused = Vec::new();
    for name in ["kv", "demo-nats-processor", "demo-nats-producer"] {
        refused.push(secrets.get(name).await.expect_err("the processor reads a Secret").to_string());
    }
    refused.push(
        secrets.list(&ListParams::default()).await.expect_err("the processor lists Secrets").to_string(),
    );
    assert!(refused.iter().all(|why| why.contains("forbidden")), "{refused:?}");
    // The token is valid: permitted requests succeed.
    let pipelines: Api<taskpipeline_operator::api::TaskPipeline> = Api::namespaced(client, &namespace.name);
    pipelines.get("tasks").await.unwrap();
    println!("refused {} times: {}", refused.len(), refused[0]);
}
