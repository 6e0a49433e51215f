//! The simulator answers as Cloudflare documents the real API.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod support;

use std::time::{Duration, Instant, SystemTime};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Api, start};
use taskpipeline_simulator::{
    Config, Fault, Landing, Latency, Operation, RateLimit, Report, Rule, Scope, Seen, Simulator, Spread,
};
use tokio::time::sleep;

#[tokio::test]
async fn values_are_put_read_listed_and_deleted_bulk_and_single() {
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
async fn over_the_limit_all_requests_are_blocked_for_the_retry_after() {
    let rate_limit = Some(RateLimit { requests: 3, ..RateLimit::CLOUDFLARE });
    let (simulator, api) = start(Config { rate_limit, ..Config::default() }).await;
    for _ in 0..3 {
        assert_eq!(api.call(Method::GET, "/keys", "").await.0, StatusCode::OK);
    }
    let response = api.request(Method::GET, "/keys", "").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "300");
    assert_eq!(response.headers()["ratelimit"], r#""default";r=0;t=300"#);
    assert_eq!(api.code(Method::GET, "/keys", "").await, (429, 971));
    let seen = simulator.seen();
    assert_eq!((seen.most_in_sliding_window, seen.most_in_fixed_window, seen.throttled), (3, 3, 2));
    assert_eq!((seen.throttled_by_sliding_window, seen.throttled_by_fixed_window), (2, 2));
}

#[tokio::test]
async fn every_answer_to_a_known_token_has_the_headers_of_the_rate_limit() {
    let (simulator, mut api) = start(Config::default()).await;
    let headers = async |api: &Api, path| {
        let response = api.request(Method::GET, path, "").send().await.unwrap();
        ["ratelimit", "ratelimit-policy"]
            .map(|name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()))
    };
    let policy = Some(r#""default";q=1200;w=300"#.to_owned());
    assert_eq!(headers(&api, "/keys").await, [Some(r#""default";r=1199;t=300"#.to_owned()), policy.clone()]);
    assert_eq!(headers(&api, "/values/none").await[0].as_deref(), Some(r#""default";r=1198;t=300"#));
    simulator.inject(Rule::new(Fault::Throttled { retry_after: Duration::from_secs(7) }));
    assert_eq!(headers(&api, "/keys").await, [Some(r#""default";r=0;t=7"#.to_owned()), policy]);
    simulator.set_faults([Rule::new(Fault::RevokedToken)]);
    assert_eq!(headers(&api, "/keys").await, [None, None]);
    simulator.set_faults([]);
    api.token = "stolen".to_owned();
    assert_eq!(headers(&api, "/keys").await, [None, None]);
}

#[tokio::test]
async fn a_large_body_takes_longer() {
    let latency = Latency { per_mebibyte: Duration::from_millis(200), ..Latency::NONE };
    let (quick, api) = start(Config::default()).await;
    let slow = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
    let api = Api { root: api.root.replace(&quick.base_url(), &slow.base_url()), ..api };
    let begun = Instant::now();
    api.call(Method::PUT, "/values/a", vec![b'x'; 2 << 20]).await;
    assert!(begun.elapsed() >= Duration::from_millis(400));
    assert_eq!(slow.seen().body_bytes["put"], 2 << 20);
}

#[tokio::test]
async fn keys_and_bytes_are_counted_by_operation() {
    let (simulator, api) = start(Config::default()).await;
    let pairs = json!([{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]).to_string();
    api.call(Method::PUT, "/bulk", pairs.clone()).await;
    api.call(Method::PUT, "/bulk", r#"[{"key": "c", "value": "3"}]"#).await;
    api.call(Method::POST, "/bulk/get", r#"{"keys": ["a", "none"]}"#).await;
    api.call(Method::GET, "/values/a", "").await;
    api.call(Method::GET, "/keys?prefix=b", "").await;
    api.call(Method::DELETE, "/values/a", "").await;
    let seen = simulator.seen();
    let keys = [("bulk_get", 2), ("bulk_put", 3), ("delete", 1), ("get", 1), ("list", 1)];
    assert_eq!(seen.keys, keys.into());
    assert_eq!(seen.body_bytes["bulk_put"], pairs.len() as u64 + 28);
    let spread = Spread { min: 1, p50: 1, p90: 2, p99: 2, max: 2 };
    assert_eq!(seen.keys_per_request["bulk_put"], spread);
}

#[tokio::test]
async fn the_landing_of_each_key_is_recorded() {
    let config = Config { record_landings: true, ..Config::default() };
    let (simulator, api) = start(config).await;
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64;
    let before = now();
    let pairs = json!([{"key": "a\"", "value": "1"}, {"key": "b", "value": "2"}]);
    simulator.inject(
        Rule::new(Fault::Partial { at_most: Some(1), report: Report::Right }).on(Operation::BulkDelete),
    );
    api.call(Method::PUT, "/bulk", pairs.to_string()).await;
    api.call(Method::POST, "/bulk/delete", r#"["a\"", "b"]"#).await;
    let landings = simulator.landings(0);
    let fields = |landing: &Landing| (landing.number, landing.key.to_string(), landing.operation);
    let expected = [
        (0, "a\"".to_owned(), Operation::BulkPut),
        (1, "b".to_owned(), Operation::BulkPut),
        (2, "b".to_owned(), Operation::BulkDelete),
    ];
    assert_eq!(landings.iter().map(fields).collect::<Vec<_>>(), expected, "an omitted key does not land");
    assert!(landings.iter().all(|landing| (before..=now()).contains(&landing.unix_micros)));

    let url = format!("{}/landings?from=1&most=1", simulator.control_url());
    let lines = api.client.get(url).send().await.unwrap().text().await.unwrap();
    assert_eq!(lines, format!("[1,\"b\",{},\"bulk_put\"]\n", landings[1].unix_micros));
    let (other, _) = start(Config::default()).await;
    other.seed("a", "1");
    assert!(other.landings(0).is_empty(), "landings are off by default");
}

#[tokio::test]
async fn a_reset_empties_the_simulator_and_requests_in_flight_change_nothing() {
    let latency = Latency { least: Duration::from_millis(300), ..Latency::NONE };
    let config = Config { record_landings: true, latency, ..Config::default() };
    let simulator = Simulator::start(config).await.unwrap();
    let (quick, api) = start(Config::default()).await;
    let api = Api { root: api.root.replace(&quick.base_url(), &simulator.base_url()), ..api };
    let pairs = |key| json!([{"key": key, "value": "1", "metadata": 7}]).to_string();
    api.call(Method::PUT, "/bulk", pairs("a")).await;
    simulator.inject(Rule::new(Fault::Hang).on(Scope::Reads));

    let reset = async {
        sleep(Duration::from_millis(100)).await;
        let url = format!("{}/reset", simulator.control_url());
        assert_eq!(api.client.post(url).send().await.unwrap().status(), StatusCode::NO_CONTENT);
        assert_eq!(simulator.seen(), Seen::default());
    };
    let ((status, _), ()) = tokio::join!(api.call(Method::PUT, "/bulk", pairs("b")), reset);
    assert_eq!(status, StatusCode::OK);
    assert_eq!(simulator.seen(), Seen::default());
    assert!(simulator.keys().is_empty() && simulator.requests().is_empty() && simulator.faults().is_empty());

    api.call(Method::PUT, "/bulk", pairs("c")).await;
    assert_eq!((simulator.keys(), simulator.seen().writes_too_soon), (vec!["c".to_owned()], 0));
    assert_eq!(simulator.landings(0).len(), 1);
    assert_eq!(simulator.get("c").unwrap().metadata, Some(json!(7)));
}

#[tokio::test]
async fn metadata_and_values_are_answered_as_they_were_written() {
    let (simulator, api) = start(Config::default()).await;
    let value = "\u{0}\"é\n\u{1F600}";
    // Shorter than 1,024 bytes without the spaces.
    let body = format!(
        r#"[{{"key": "a", "value": {}, "metadata": {{"m":{}"é"}}}}]"#,
        json!(value),
        " ".repeat(2_000)
    );
    assert_eq!(api.call(Method::PUT, "/bulk", body).await.0, StatusCode::OK);
    let metadata = json!({"m": "é"});
    let stored = simulator.get("a").unwrap();
    assert_eq!((stored.value, stored.metadata), (value.as_bytes().to_vec(), Some(metadata.clone())));
    let (_, got) = api.call(Method::POST, "/bulk/get", r#"{"keys": ["a"], "withMetadata": true}"#).await;
    assert_eq!(got["result"]["values"]["a"], json!({"value": value, "metadata": metadata}));

    let form = "--x\r\nContent-Disposition: form-data; name=\"value\"\r\n\r\nv\r\n--x\r\n\
        Content-Disposition: form-data; name=\"metadata\"\r\n\r\n[1]\r\n--x--\r\n";
    let put = api.request(Method::PUT, "/values/form", form);
    let put = put.header("content-type", "multipart/form-data; boundary=x").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::OK);
    assert_eq!(simulator.get("form").unwrap().metadata, Some(json!([1])));
}

#[tokio::test]
async fn overlapping_writes_and_writes_too_soon_are_counted() {
    let (simulator, api) = start(Config::default()).await;
    let body = r#"[{"key": "a", "value": "1"}]"#;
    api.call(Method::PUT, "/bulk", body).await;
    api.call(Method::PUT, "/bulk", body).await;
    assert_eq!(simulator.seen().writes_too_soon, 1);
    assert_eq!(simulator.seen().overlapping_keys, 0);

    let latency = Latency { least: Duration::from_millis(200), ..Latency::NONE };
    let slow = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
    let api = Api { root: api.root.replace(&simulator.base_url(), &slow.base_url()), ..api };
    tokio::join!(api.call(Method::PUT, "/bulk", body), api.call(Method::DELETE, "/values/a", ""));
    assert_eq!(slow.seen().overlapping_keys, 1);
}

#[tokio::test]
async fn the_pages_show_a_write_of_the_api_at_once_and_a_deleted_task_is_gone() {
    let pages = Some("127.0.0.1:0".parse().unwrap());
    let (simulator, api) = start(Config { pages, ..Config::default() }).await;
    let shown = simulator.pages_url().unwrap();
    let get = async |path: &str| api.client.get(format!("{shown}{path}")).send().await.unwrap();
    let task = |n: usize| {
        json!({
            "id": format!("task-{n:03}"), "title": format!("Task <{n}>"), "description": "", "status": "pending",
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
        })
    };
    let pair = |n: usize| {
        let metadata = json!({
            "title": format!("Task <{n}>"), "status": "pending",
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
        });
        json!({"key": format!("tasks:task-{n:03}"), "value": task(n).to_string(), "metadata": metadata})
    };
    let pairs: Vec<_> = (0..150).map(pair).collect();
    assert!(api.call(Method::PUT, "/bulk", json!(pairs).to_string()).await.0.is_success());

    let page = get("").await.text().await.unwrap();
    assert!(page.contains("Task &lt;0&gt;") || page.contains("Task &#60;0&#62;"), "{page}");
    let mut listed = Vec::new();
    let mut path = "api/tasks?limit=100".to_owned();
    while let Ok(page) = serde_json::from_str::<Value>(&get(&path).await.text().await.unwrap()) {
        listed.extend(page["tasks"].as_array().unwrap().iter().map(|task| task["id"].clone()));
        let Some(cursor) = page["cursor"].as_str() else { break };
        path = format!("api/tasks?limit=100&cursor={}", cursor.replace(':', "%3A"));
    }
    assert_eq!((listed.len(), &listed[149]), (150, &json!("task-149")));

    assert_eq!(get("api/tasks/task-007").await.json::<Value>().await.unwrap()["title"], "Task <7>");
    assert!(api.call(Method::DELETE, "/values/tasks%3Atask-007", "").await.0.is_success());
    assert_eq!(get("api/tasks/task-007").await.status(), 404);
    assert_eq!(simulator.seen().answers.len(), 2, "a request for a page does not count for the API");
}
