//! Each fault has its effect over real HTTP and is counted, and the control endpoint can set every fault.

#![allow(clippy::unwrap_used)] // a test may

mod support;

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Api, start};
use taskpipeline_simulator::{
    Config, Fault, KeyMatch, Latency, LoggedRequest, Operation, RateLimit, Report, Rule, Scope, Simulator,
};
use tokio::time::{Instant, sleep};

const SHORT: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(1);

fn pairs(keys: impl IntoIterator<Item = &'static str>, value: &str) -> String {
    let pairs: Vec<_> = keys.into_iter().map(|key| json!({"key": key, "value": value})).collect();
    json!(pairs).to_string()
}

fn value(simulator: &Simulator, key: &str) -> Option<String> {
    simulator.get(key).map(|stored| String::from_utf8(stored.value).unwrap())
}

async fn bulk_put(api: &Api, body: String) -> Value {
    let (status, answer) = api.call(Method::PUT, "/bulk", body).await;
    assert_eq!((status, &answer["success"]), (StatusCode::OK, &json!(true)), "{answer}");
    answer["result"].clone()
}

/// Sends a request and asserts that no answer comes within [`SHORT`].
async fn gives_up(api: &Api, method: Method, path: &str, body: &str) {
    let request = api.request(method, path, body.to_owned()).timeout(SHORT);
    assert!(request.send().await.unwrap_err().is_timeout());
}

async fn control(simulator: &Simulator, api: &Api, method: Method, path: &str, body: Value) -> (u16, String) {
    let request = api.client.request(method, format!("{}{path}", simulator.control_url())).json(&body);
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn a_status_fault_answers_its_operations_for_its_times_and_prevents_the_effect() {
    let (simulator, api) = start(Config::default()).await;
    simulator.set_faults([
        Rule::new(Fault::status(500)).on(Operation::BulkPut).times(2),
        Rule::new(Fault::Status { status: 403, code: Some(10_000), message: Some("no".to_owned()) })
            .on([Operation::List])
            .named("forbidden"),
    ]);
    for _ in 0..2 {
        let (status, answer) = api.call(Method::PUT, "/bulk", pairs(["a"], "1")).await;
        assert_eq!((status.as_u16(), &answer["errors"]), (500, &json!([])));
        assert!(simulator.keys().is_empty());
    }
    assert_eq!(api.call(Method::DELETE, "/values/a", "").await.0, StatusCode::OK);
    bulk_put(&api, pairs(["a"], "1")).await;
    assert_eq!(api.code(Method::GET, "/keys", "").await, (403, 10_000));
    let seen = simulator.seen();
    assert_eq!((seen.fault("status"), seen.fault("forbidden"), seen.refused), (2, 1, 3));
    assert_eq!(seen.answered(Operation::BulkPut, Some(500)), 2);
    assert_eq!(seen.answered(Operation::BulkPut, Some(200)), 1);
    assert_eq!(
        seen.writes_too_soon, 1,
        "the put follows the delete too soon; failed requests do not count as writes"
    );
    assert_eq!(simulator.faults().len(), 1, "the first rule has ended");
}

#[tokio::test]
async fn an_outage_ends_after_its_time() {
    let (simulator, api) = start(Config::default()).await;
    simulator.inject(Rule::new(Fault::status(503)).lasting(LONG));
    assert_eq!(api.call(Method::GET, "/keys", "").await.0.as_u16(), 503);
    sleep(LONG).await;
    assert_eq!(api.call(Method::GET, "/keys", "").await.0.as_u16(), 200);
    assert_eq!(simulator.seen().fault("status"), 1);
}

#[tokio::test]
async fn a_429_has_a_retry_after_and_the_log_shows_requests_that_do_not_wait() {
    let (simulator, api) = start(Config::default()).await;
    simulator.inject(Rule::new(Fault::Throttled { retry_after: Duration::from_secs(7) }).times(1));
    let refused = api.request(Method::PUT, "/bulk", pairs(["a"], "1")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "7");
    bulk_put(&api, pairs(["a"], "1")).await;

    let requests = simulator.requests();
    let [first, second] = requests.as_slice() else { unreachable!("{requests:?}") };
    assert!(second.at > first.at && second.at - first.at < Duration::from_secs(7));
    assert_eq!((first.answered, first.fault.as_deref(), first.key_count), (Some(429), Some("throttled"), 0));
    let expected = LoggedRequest {
        at: second.at,
        operation: Operation::BulkPut,
        key_count: 1,
        keys: vec!["a".to_owned()],
        answered: Some(200),
        fault: None,
    };
    assert_eq!(second, &expected);
    let seen = simulator.seen();
    assert_eq!((seen.throttled, seen.fault("throttled"), seen.most_in_sliding_window), (1, 1, 2));
}

#[tokio::test]
async fn a_request_hangs_and_another_is_slow() {
    let (simulator, api) = start(Config::default()).await;
    simulator.set_faults([
        Rule::new(Fault::Hang).on(Scope::Writes).times(1),
        Rule::new(Fault::Slow { extra: LONG }).on(Scope::Writes).times(2),
    ]);
    gives_up(&api, Method::PUT, "/values/a", "1").await;
    let begun = Instant::now();
    assert_eq!(api.call(Method::PUT, "/values/b", "1").await.0, StatusCode::OK);
    assert!(begun.elapsed() >= LONG);
    gives_up(&api, Method::PUT, "/values/c", "1").await;
    sleep(LONG).await;
    assert_eq!(simulator.keys(), ["b", "c"], "a slow write takes effect even if the client gives up");
    let seen = simulator.seen();
    assert_eq!((seen.fault("hang"), seen.fault("slow")), (1, 2));
    assert_eq!((seen.answered(Operation::Put, None), seen.overlapping_keys), (1, 0));
    assert_eq!(simulator.requests()[0].answered, None);
}

#[tokio::test]
async fn an_answer_is_lost_after_the_effect() {
    let (simulator, api) = start(Config::default()).await;
    simulator.set_faults([
        Rule::new(Fault::LostAnswer { status: None }).times(1),
        Rule::new(Fault::LostAnswer { status: Some(502) }).times(1),
    ]);
    let begun = Instant::now();
    let lost = api.request(Method::PUT, "/bulk", pairs(["a"], "1")).send().await.unwrap_err();
    assert!(lost.is_request() && !lost.is_timeout() && begun.elapsed() < Duration::from_secs(5), "{lost:?}");
    assert_eq!(value(&simulator, "a").as_deref(), Some("1"));
    assert_eq!(api.call(Method::POST, "/bulk/delete", r#"["a"]"#).await.0.as_u16(), 502);
    assert!(simulator.keys().is_empty());
    bulk_put(&api, pairs(["b"], "1")).await;
    let seen = simulator.seen();
    assert_eq!((seen.fault("lost_answer"), seen.answered(Operation::BulkPut, None)), (2, 1));
    assert_eq!(seen.total_requests(), 3, "the HTTP client did not retry");
}

#[tokio::test]
async fn a_write_lands_late_over_a_newer_one() {
    let (simulator, api) = start(Config::default()).await;
    simulator.inject(Rule::new(Fault::Late { after: LONG, status: None }).times(1));
    gives_up(&api, Method::PUT, "/bulk", &pairs(["a"], "old")).await;
    assert!(simulator.keys().is_empty());
    bulk_put(&api, pairs(["a"], "new")).await;
    assert_eq!(value(&simulator, "a").as_deref(), Some("new"));
    sleep(LONG).await;
    assert_eq!(value(&simulator, "a").as_deref(), Some("old"));

    simulator.inject(Rule::new(Fault::Late { after: LONG, status: Some(524) }).times(1));
    assert_eq!(api.call(Method::DELETE, "/values/a", "").await.0.as_u16(), 524);
    assert_eq!(value(&simulator, "a").as_deref(), Some("old"));
    sleep(LONG + SHORT).await;
    assert!(simulator.keys().is_empty());
    let seen = simulator.seen();
    assert_eq!((seen.fault("late"), seen.keys_put, seen.keys_deleted), (2, 2, 1));
    assert_eq!((seen.overlapping_keys, seen.answered(Operation::BulkPut, None)), (0, 1));
}

#[tokio::test]
async fn some_keys_of_a_bulk_write_fail_and_the_answer_names_them_or_not() {
    let (simulator, api) = start(Config::default()).await;
    let partial = |at_most, report| Rule::new(Fault::Partial { at_most, report }).times(1);
    let keys = ["a1", "b1", "a2", "b2"];
    simulator.set_faults([
        partial(None, Report::Right).keys(KeyMatch::EndsWith("2".to_owned())),
        partial(Some(1), Report::Right).on(Operation::BulkDelete),
        partial(Some(3), Report::Unnamed),
        partial(Some(1), Report::Overcounted).keys(KeyMatch::Contains("b".to_owned())),
    ]);
    let result = bulk_put(&api, pairs(keys, "1")).await;
    assert_eq!(result, json!({"successful_key_count": 2, "unsuccessful_keys": ["a2", "b2"]}));
    assert_eq!(simulator.keys(), ["a1", "b1"]);

    let (_, deleted) = api.call(Method::POST, "/bulk/delete", json!(["a1", "b1"]).to_string()).await;
    assert_eq!(deleted["result"], json!({"successful_key_count": 1, "unsuccessful_keys": ["a1"]}));
    assert_eq!(simulator.keys(), ["a1"]);

    let result = bulk_put(&api, pairs(keys, "1")).await;
    assert_eq!(result, json!({"successful_key_count": 1, "unsuccessful_keys": []}));
    assert_eq!(simulator.keys(), ["a1", "b2"]);

    let result = bulk_put(&api, pairs(keys, "1")).await;
    assert_eq!(result, json!({"successful_key_count": 4, "unsuccessful_keys": ["b1"]}));
    assert_eq!(simulator.keys(), ["a1", "a2", "b2"]);
    let seen = simulator.seen();
    assert_eq!((seen.fault("partial"), seen.keys_put, seen.keys_deleted), (4, 6, 1));
}

#[tokio::test]
async fn a_request_with_a_poisonous_value_is_refused_as_a_whole() {
    let (simulator, api) = start(Config::default()).await;
    simulator.set_faults([Rule::poison("POISON", 400), Rule::poison("FAT", 413)]);
    let bad = json!([{"key": "a", "value": "good"}, {"key": "b", "value": "some POISON here"}]).to_string();
    assert_eq!(api.call(Method::PUT, "/bulk", bad).await.0.as_u16(), 400);
    assert_eq!(api.call(Method::PUT, "/values/c", "FAT").await.0.as_u16(), 413);
    assert!(simulator.keys().is_empty());
    bulk_put(&api, pairs(["a"], "good")).await;
    api.call(Method::DELETE, "/values/POISON", "").await;
    assert_eq!((simulator.seen().fault("poison"), simulator.seen().keys_put), (2, 1));
}

#[tokio::test]
async fn stale_reads_have_the_configured_age() {
    let (simulator, api) = start(Config::default()).await;
    simulator.seed("always", "0");
    bulk_put(&api, pairs(["a"], "1")).await;
    sleep(LONG).await;
    bulk_put(&api, pairs(["a", "b"], "2")).await;
    api.call(Method::DELETE, "/values/always", "").await;

    simulator.inject(Rule::new(Fault::Stale { age: LONG }).times(4));
    let keys = json!({"keys": ["a", "b", "always"]}).to_string();
    let (_, got) = api.call(Method::POST, "/bulk/get", keys.clone()).await;
    assert_eq!(got["result"]["values"], json!({"a": "1", "b": null, "always": "0"}));
    assert_eq!(api.call(Method::GET, "/values/a", "").await.1, json!(1));
    assert_eq!(api.code(Method::GET, "/values/b", "").await, (404, 10_009));
    let (_, list) = api.call(Method::GET, "/keys", "").await;
    assert_eq!(list["result"], json!([{"name": "a"}, {"name": "always"}]));

    let (_, got) = api.call(Method::POST, "/bulk/get", keys.clone()).await;
    assert_eq!(got["result"]["values"], json!({"a": "2", "b": "2", "always": null}));
    simulator.inject(Rule::new(Fault::Stale { age: Duration::from_secs(60) }));
    let (_, got) = api.call(Method::POST, "/bulk/get", keys).await;
    assert_eq!(got["result"]["values"], json!({"a": null, "b": null, "always": "0"}));
    assert_eq!(simulator.seen().fault("stale"), 5);
}

#[tokio::test]
async fn faults_of_token_account_and_namespace_apply_until_they_are_removed() {
    let (simulator, api) = start(Config::default()).await;
    for (fault, expected, counted) in [
        (Fault::RevokedToken, (401, 10_000), 0),
        (Fault::UnknownAccount, (400, 7_003), 1),
        (Fault::MissingNamespace, (404, 10_013), 1),
    ] {
        let (name, before) = (fault.name(), simulator.seen().most_in_sliding_window);
        simulator.inject(Rule::new(fault));
        assert_eq!(api.code(Method::PUT, "/bulk", "not even JSON").await, expected);
        assert_eq!(simulator.seen().most_in_sliding_window - before, counted, "{name} applies at its check");
        simulator.remove_faults(name);
        assert_eq!(api.call(Method::GET, "/keys", "").await.0, StatusCode::OK);
        assert_eq!(simulator.seen().fault(name), 1);
    }
    assert_eq!(simulator.seen().total_requests(), 3, "only requests without a fault are admitted");
}

#[tokio::test]
async fn the_real_check_comes_before_a_fault_at_the_same_place() {
    let rate_limit = Some(RateLimit { requests: 1, ..RateLimit::CLOUDFLARE });
    let (simulator, mut api) = start(Config { rate_limit, ..Config::default() }).await;
    simulator.inject(Rule::new(Fault::Throttled { retry_after: Duration::from_secs(1) }));
    assert_eq!(api.code(Method::GET, "/keys", "").await, (429, 971));
    assert_eq!(api.code(Method::GET, "/keys", "").await, (429, 971));
    api.token = "stolen".to_owned();
    assert_eq!(api.code(Method::GET, "/keys", "").await, (401, 10_000));
    let seen = simulator.seen();
    assert_eq!((seen.fault("throttled"), seen.throttled), (1, 2), "the second 429 is from the rate limit");
}

#[tokio::test]
async fn faults_give_answers_that_the_api_never_gives() {
    let (simulator, api) = start(Config::default()).await;
    let redirect = Fault::Redirect { location: "http://127.0.0.1:9/elsewhere".to_owned() };
    let faults =
        [redirect, Fault::Html, Fault::EchoAuthorization { status: 500 }, Fault::Garbage, Fault::Truncated];
    let names = faults.clone().map(|fault| fault.name());
    simulator.set_faults(faults.map(|fault| Rule::new(fault).times(1)));
    let put = || api.request(Method::PUT, "/bulk", pairs(["a"], "1")).send();

    let redirected = put().await.unwrap();
    assert_eq!(redirected.status(), StatusCode::FOUND);
    assert_eq!(redirected.headers()["location"], "http://127.0.0.1:9/elsewhere");
    let html = put().await.unwrap();
    assert_eq!(html.status(), StatusCode::OK);
    assert_eq!(html.headers()["content-type"], "text/html; charset=utf-8");
    assert!(html.text().await.unwrap().starts_with("<!DOCTYPE html>"));
    let echo = put().await.unwrap();
    assert_eq!(echo.status().as_u16(), 500);
    assert!(echo.text().await.unwrap().contains("Bearer token"));
    let garbage = put().await.unwrap();
    assert_eq!(garbage.status().as_u16(), 200);
    assert!(String::from_utf8(garbage.bytes().await.unwrap().into()).is_err());
    assert!(simulator.keys().is_empty(), "none of these had an effect");

    let truncated = put().await.unwrap();
    assert_eq!(truncated.status().as_u16(), 200);
    let text = truncated.text().await.unwrap();
    let error = serde_json::from_str::<Value>(&text).unwrap_err();
    assert!(error.is_eof() && !text.is_empty(), "{text}");
    assert_eq!(simulator.keys(), ["a"]);
    for name in names {
        assert_eq!(simulator.seen().fault(name), 1, "{name}");
    }
}

#[tokio::test]
async fn a_rule_on_keys_affects_only_requests_with_a_matching_key() {
    let (simulator, api) = start(Config::default()).await;
    simulator.inject(Rule::new(Fault::status(500)).keys(KeyMatch::StartsWith("bad:".to_owned())));
    simulator.inject(Rule::new(Fault::RevokedToken).keys(KeyMatch::Is("a".to_owned())));
    assert_eq!(api.call(Method::PUT, "/bulk", pairs(["b", "bad:1"], "1")).await.0.as_u16(), 500);
    assert_eq!(api.code(Method::GET, "/values/a", "").await, (401, 10_000));
    assert_eq!(api.code(Method::GET, "/values/b", "").await, (404, 10_009));
    assert_eq!(api.call(Method::GET, "/keys?prefix=bad:", "").await.0.as_u16(), 200);
    let seen = simulator.seen();
    assert_eq!((seen.fault("status"), seen.fault("revoked_token")), (1, 1));
}

#[tokio::test]
async fn the_control_endpoint_sets_lists_and_removes_faults_and_is_not_counted() {
    let (simulator, api) = start(Config::default()).await;
    let rules = json!([
        {"on": "writes", "times": 3, "fault": {"status": {"status": 503}}},
        {"name": "outage", "on": {"only": ["bulk_get"]}, "lasting_ms": 60_000, "fault": "hang"},
    ]);
    assert_eq!(control(&simulator, &api, Method::PUT, "/faults", rules).await.0, 204);
    assert_eq!(api.call(Method::PUT, "/bulk", pairs(["a"], "1")).await.0.as_u16(), 503);
    gives_up(&api, Method::POST, "/bulk/get", r#"{"keys": ["a"]}"#).await;

    let throttled = json!({"on": "reads", "times": 1, "fault": {"throttled": {"retry_after_ms": 6_500}}});
    assert_eq!(control(&simulator, &api, Method::POST, "/faults", throttled).await.0, 204);
    let refused = api.request(Method::GET, "/keys", "").send().await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "7");

    for bad in [json!({}), json!([{"fault": "no such"}]), json!([{"fault": "hang", "time": 1}])] {
        let (status, reason) = control(&simulator, &api, Method::PUT, "/faults", bad.clone()).await;
        assert!(status == 400 && reason.contains("JSON"), "{bad}: {status} {reason}");
    }
    let (_, left) = control(&simulator, &api, Method::GET, "/faults", Value::Null).await;
    let left: Vec<Value> = serde_json::from_str(&left).unwrap();
    assert_eq!((left[0]["times"].as_u64(), left.len()), (Some(2), 2));
    assert!((1..60_000).contains(&left[1]["lasting_ms"].as_u64().unwrap()), "{left:?}");

    let (_, seen) = control(&simulator, &api, Method::GET, "/seen", Value::Null).await;
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen, serde_json::to_value(simulator.seen()).unwrap());
    assert_eq!(seen["faults"], json!({"status": 1, "outage": 1, "throttled": 1}));
    let answers = json!({"bulk_put": {"503": 1}, "bulk_get": {"none": 1}, "list": {"429": 1}});
    assert_eq!(seen["answers"], answers);
    assert_eq!((seen["most_in_sliding_window"].as_u64(), simulator.requests().len()), (Some(3), 3));

    control(&simulator, &api, Method::DELETE, "/faults/outage", Value::Null).await;
    assert_eq!(simulator.faults().len(), 1);
    control(&simulator, &api, Method::DELETE, "/faults", Value::Null).await;
    bulk_put(&api, pairs(["a"], "1")).await;
}

#[tokio::test]
async fn during_a_rotation_both_tokens_are_admitted_and_then_only_the_new_token() {
    let (simulator, old) = start(Config::default()).await;
    let new = Api { client: old.client.clone(), root: old.root.clone(), token: "new".to_owned() };
    let status = async |api: &Api| api.call(Method::GET, "/keys", "").await.0.as_u16();
    assert_eq!((status(&old).await, status(&new).await), (200, 401));
    simulator.set_tokens(["token".to_owned(), "new".to_owned()]);
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
    assert_eq!(control(&simulator, &old, Method::PUT, "/tokens", json!(["new"])).await.0, 204);
    assert_eq!((status(&old).await, status(&new).await), (401, 200));
    assert_eq!(control(&simulator, &old, Method::PUT, "/tokens", json!("new")).await.0, 400);
    assert_eq!(status(&new).await, 200, "invalid JSON changes nothing");
    simulator.reset();
    assert_eq!((status(&old).await, status(&new).await), (200, 401));
}

#[tokio::test]
async fn every_request_is_logged_refused_requests_included() {
    let (simulator, mut api) = start(Config::default()).await;
    let many: Vec<_> = (0..201).map(|n| json!({"key": n.to_string(), "value": ""})).collect();
    bulk_put(&api, json!(many).to_string()).await;
    api.call(Method::DELETE, "/values/a%2Fb", "").await;
    api.call(Method::POST, "/keys", "").await;
    assert_eq!(api.code(Method::GET, "/elsewhere", "").await, (400, 7_003));
    api.call(Method::PUT, "/bulk", "{}").await;
    api.token = "stolen".to_owned();
    api.call(Method::GET, "/keys", "").await;
    let logged = |request: &LoggedRequest| {
        (request.operation.name(), request.key_count, request.keys.join(","), request.answered)
    };
    assert_eq!(
        simulator.requests().iter().map(logged).collect::<Vec<_>>(),
        [
            ("bulk_put", 201, String::new(), Some(200)),
            ("delete", 1, "a/b".to_owned(), Some(200)),
            ("other", 0, String::new(), Some(405)),
            ("other", 0, String::new(), Some(400)),
            ("bulk_put", 0, String::new(), Some(400)),
            ("list", 0, String::new(), Some(401)),
        ]
    );
}

#[tokio::test]
async fn a_client_that_disconnects_does_not_stop_its_write() {
    let (quick, api) = start(Config::default()).await;
    let latency = Latency { least: LONG, ..Latency::NONE };
    let slow = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
    let api = Api { root: api.root.replace(&quick.base_url(), &slow.base_url()), ..api };
    gives_up(&api, Method::PUT, "/values/a", "1").await;
    assert!(slow.keys().is_empty());
    sleep(LONG).await;
    assert_eq!(slow.keys(), ["a"]);
    assert_eq!(slow.requests()[0].answered, Some(200));
}
