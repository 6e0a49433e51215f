//! The simulator answers as Cloudflare's documentation says the real API does.

#![allow(clippy::unwrap_used)] // a test may

mod support;

use reqwest::{Method, StatusCode};
use serde_json::json;
use support::{Api, start};
use taskpipeline_simulator::{Config, Latency, RateLimit, Simulator};

#[tokio::test]
async fn values_are_put_read_listed_and_deleted_in_bulk_and_alone() {
    let (simulator, api) = start(Config::default()).await;
    let pairs = json!([{"key": "t:a/b", "value": "1", "metadata": {"m": 1}}, {"key": "t:2", "value": "2"}]);
    let (_, put) = api.call(Method::PUT, "/bulk", pairs.to_string()).await;
    assert_eq!(put["result"], json!({"successful_key_count": 2, "unsuccessful_keys": []}));

    assert_eq!(api.call(Method::GET, "/values/t:a%2Fb", "").await.1, json!(1));
    let (_, got) = api.call(Method::POST, "/bulk/get", json!({"keys": ["t:2", "t:3"]}).to_string()).await;
    assert_eq!(got["result"]["values"], json!({"t:2": "2", "t:3": null}));
    let (_, list) = api.call(Method::GET, "/keys?prefix=t:&limit=10", "").await;
    assert_eq!(list["result"], json!([{"name": "t:2"}, {"name": "t:a/b", "metadata": {"m": 1}}]));

    api.call(Method::POST, "/bulk/delete", r#"["t:2", "t:9"]"#).await;
    api.call(Method::DELETE, "/values/t:a%2Fb", "").await;
    assert!(simulator.keys().is_empty());
    let seen = simulator.seen();
    assert_eq!((seen.keys_put, seen.keys_deleted, seen.total_requests()), (2, 3, 6));
}

#[tokio::test]
async fn each_refusal_has_cloudflares_status_and_code() {
    let (_simulator, mut api) = start(Config::default()).await;
    assert_eq!(api.code(Method::GET, "/values/none", "").await, (404, 10_009));
    assert_eq!(api.code(Method::PUT, "/bulk", "{}").await.0, 400);
    let many: Vec<_> = (0..10_001).map(|n| json!({"key": n.to_string(), "value": ""})).collect();
    assert_eq!(api.code(Method::PUT, "/bulk", json!(many).to_string()).await, (400, 10_012));
    let long = json!([{"key": "k".repeat(513), "value": ""}]);
    assert_eq!(api.code(Method::PUT, "/bulk", long.to_string()).await.0, 400);
    let fat = json!([{"key": "k", "value": "", "metadata": {"m": "x".repeat(1024)}}]);
    assert_eq!(api.code(Method::PUT, "/bulk", fat.to_string()).await.0, 400);
    let hundred_and_one: Vec<_> = (0..101).map(|n| n.to_string()).collect();
    let body = json!({"keys": hundred_and_one}).to_string();
    assert_eq!(api.code(Method::POST, "/bulk/get", body).await, (400, 10_012));

    api.root = api.root.replace("/namespaces/namespace", "/namespaces/other");
    assert_eq!(api.code(Method::GET, "/keys", "").await, (404, 10_013));
    api.token = "stolen".to_owned();
    assert_eq!(api.code(Method::GET, "/keys", "").await, (401, 10_000));
}

#[tokio::test]
async fn past_the_limit_everything_is_blocked_and_retry_after_says_how_long() {
    let rate_limit = Some(RateLimit { requests: 3, ..RateLimit::CLOUDFLARE });
    let (simulator, api) = start(Config { rate_limit, ..Config::default() }).await;
    for _ in 0..3 {
        assert_eq!(api.call(Method::GET, "/keys", "").await.0, StatusCode::OK);
    }
    let request = api.client.get(format!("{}/keys", api.root)).bearer_auth("token");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "300");
    assert_eq!(api.code(Method::GET, "/keys", "").await, (429, 971));
    let seen = simulator.seen();
    assert_eq!((seen.most_in_a_window, seen.throttled), (3, 2));
}

#[tokio::test]
async fn overlapping_and_hasty_writes_are_noticed() {
    let (simulator, api) = start(Config::default()).await;
    let body = r#"[{"key": "a", "value": "1"}]"#;
    api.call(Method::PUT, "/bulk", body).await;
    api.call(Method::PUT, "/bulk", body).await;
    assert_eq!(simulator.seen().writes_too_soon, 1);
    assert_eq!(simulator.seen().overlapping_keys, 0);

    let latency = Latency { least: std::time::Duration::from_millis(200), ..Latency::NONE };
    let slow = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
    let api = Api { root: api.root.replace(&simulator.base_url(), &slow.base_url()), ..api };
    tokio::join!(api.call(Method::PUT, "/bulk", body), api.call(Method::DELETE, "/values/a", ""));
    assert_eq!(slow.seen().overlapping_keys, 1);
}
