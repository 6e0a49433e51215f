//! Hostile requests to the edge on real workerd, and invalid values in KV.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use raw::generate::{Request, Requests};
use raw::{Answer, exchange};
use reqwest::StatusCode;
use serde_json::{Value, json};
use taskpipeline_e2e::{Edge, Shared};
use taskpipeline_testkit::{Up, eventually};

const SOON: Duration = Duration::from_secs(30);

const REQUESTS: usize = 2_000;

/// The least number of requests that must reach our Worker; workerd refuses the others.
const LEAST_OURS: usize = 1_800;

/// The number of simultaneous connections.
const CONNECTIONS: usize = 8;

/// The statuses that our Worker may return while KV works.
const ALLOWED: [u16; 4] = [200, 400, 404, 405];

/// Texts that would reveal the implementation or its location.
const LEAKS: [&str; 12] = [
    "panicked",
    "wasm",
    ".rs:",
    "    at ",
    "stack",
    "RuntimeError",
    "TypeError",
    "node_modules",
    "workerd",
    "wrangler",
    "KV LIST",
    "KvError",
];

const SECURE: [(&str, &str); 10] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; \
         frame-ancestors 'none'",
    ),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("strict-transport-security", "max-age=15552000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
    ("x-dns-prefetch-control", "off"),
    ("x-frame-options", "SAMEORIGIN"),
    ("x-permitted-cross-domain-policies", "none"),
    ("x-xss-protection", "0"),
];

/// A running product with one task, whose texts are hostile too.
struct Product {
    edge: Edge,
    up: Up,
}

static PRODUCT: Shared<Product> = Shared::new(|| Box::pin(start()));

async fn start() -> anyhow::Result<Product> {
    let up = Up::start().await?;
    let edge = Edge::of(&up);
    let nats = async_nats::connect(up.nats_url()).await?;
    let data =
        json!({"id": "task-1", "title": "<stored-7f3>", "description": "<stored-7f3>", "status": "pending"});
    let event = json!({"correlationId": "hostile-1", "data": data});
    nats.publish("tasks.created", event.to_string().into()).await?;
    nats.flush().await?;
    eventually(SOON, async || {
        let (code, task) = edge.json("/api/tasks/task-1").await?;
        ensure!(code == StatusCode::OK, "{code} {task}");
        Ok(())
    })
    .await?;
    Ok(Product { edge, up })
}

#[test]
fn two_thousand_hostile_requests_get_no_500_no_leak_and_nothing_back_unescaped() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        let [_, port, _] = product.up.ports();
        let host = format!("127.0.0.1:{port}");
        let answers: Vec<(Request, Answer)> = stream::iter(Requests::new(&host).take(REQUESTS))
            .map(async |request| {
                let answer = exchange(port, &request.bytes).await;
                let answer = answer.with_context(|| described(&request))?;
                anyhow::Ok((request, answer))
            })
            .buffer_unordered(CONNECTIONS)
            .try_collect()
            .await?;

        let (mut ours, mut escaped, mut kept) = (0, 0, 0);
        let mut faults = Vec::new();
        let mut counts: BTreeMap<(&str, u16, bool), usize> = BTreeMap::new();
        for (request, answer) in &answers {
            if let Err(error) = check(request, answer) {
                faults.push(format!("{error}\n{}\n{}", described(request), shown(answer)));
            }
            *counts.entry((request.kind, answer.status, answer.is_ours())).or_default() += 1;
            ours += usize::from(answer.is_ours());
            escaped += usize::from(answer.body.contains("&#60;stored-7f3&#62;"));
            kept += usize::from(answer.is_ours() && request.correlation.is_some());
        }
        for ((kind, status, ours), count) in &counts {
            println!("{kind:<12} {status} {:<8} {count:>5}", if *ours { "Worker" } else { "workerd" });
        }
        println!("{} requests, {ours} answered by the Worker, {kept} correlation ids kept", answers.len());
        println!("{escaped} answers show the stored hostile title, escaped");
        let some = faults.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n\n");
        ensure!(faults.is_empty(), "{} faults, such as\n{some}", faults.len());
        ensure!(answers.len() == REQUESTS && ours >= LEAST_OURS, "only {ours} reached the Worker");
        ensure!(kept > 0 && escaped > 0, "no answer kept an id or escaped a text");
        for status in ALLOWED {
            ensure!(counts.keys().any(|(_, seen, ours)| *ours && *seen == status), "no {status} among them");
        }

        let lines = product.up.process().lines();
        let cries: Vec<_> =
            lines.iter().filter(|line| line.contains("panicked") || line.contains("Uncaught")).collect();
        ensure!(cries.is_empty(), "{cries:#?}");
        let (code, task) = product.edge.json("/api/tasks/task-1").await?;
        ensure!(code == StatusCode::OK && task["title"] == "<stored-7f3>", "afterwards: {code} {task}");
        let (code, health) = product.edge.json("/health").await?;
        ensure!(code == StatusCode::OK && health["status"] == "ok", "afterwards: {code} {health}");
        Ok(())
    })
}

fn check(request: &Request, answer: &Answer) -> anyhow::Result<()> {
    // This holds for any server: a 500 without our headers would be a Worker that panicked.
    ensure!(answer.status < 500 || answer.status == 501, "a {}", answer.status);
    let head: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    ensure!(!head.contains("mark-7f3"), "a header repeats the input");
    ensure!(!answer.body.contains("mark-7f3>"), "the body repeats the input");
    if !answer.is_ours() {
        return Ok(());
    }

    ensure!(ALLOWED.contains(&answer.status), "not an allowed status");
    for (name, value) in SECURE {
        ensure!(answer.all(name) == [value], "{name} is {:?}", answer.all(name));
    }
    let kind = answer.header("content-type");
    if kind.starts_with("text/html") {
        ensure!(!answer.body.contains("<stored"), "a stored text is not escaped");
    }
    let known = ["text/html; charset=utf-8", "application/json", "text/css; charset=utf-8", "image/svg+xml"];
    ensure!(known.contains(&kind), "its type is {kind:?}");
    for leak in LEAKS {
        ensure!(!answer.body.contains(leak) && !head.contains(leak), "the answer reveals {leak:?}");
    }
    ensure!(request.method != "HEAD" || answer.body.is_empty(), "HEAD has a body");

    let shared = answer.header("cache-control").starts_with("public");
    let id = answer.header("x-correlation-id");
    ensure!(shared == id.is_empty() && is_correlation_id(id) != shared, "its correlation id is {id:?}");
    if let Some(said) = &request.correlation {
        ensure!(shared || id == said, "its correlation id is {id:?}, not {said:?}");
    }
    let error = answer.status != 200;
    if error && kind == "application/json" && request.method != "HEAD" {
        let body: Value = serde_json::from_str(&answer.body)?;
        ensure!(body["error"]["correlationId"] == id && body["error"]["code"].is_string(), "{body}");
    }
    Ok(())
}

#[test]
fn an_answer_that_repeats_leaks_or_fails_is_noticed() -> anyhow::Result<()> {
    let request = Request { bytes: Vec::new(), kind: "id", method: "GET".to_owned(), correlation: None };
    let answer = |status, body: &str| {
        let own = [
            ("content-type", "text/html; charset=utf-8"),
            ("permissions-policy", "usb=()"),
            ("x-correlation-id", "a"),
        ];
        let headers =
            SECURE.iter().chain(&own).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Answer { status, headers: headers.collect(), body: body.to_owned() }
    };
    check(&request, &answer(404, "&#60;mark-7f3&#62; and &#60;stored-7f3&#62;"))?;
    for (status, body) in [
        (404, "<mark-7f3>"),
        (404, "<stored-7f3>"),
        (404, "thread main panicked at"),
        (500, "Internal Server Error"),
        (503, "not an answer while KV is well"),
    ] {
        ensure!(check(&request, &answer(status, body)).is_err(), "{status} {body} is not noticed");
    }
    for missing in ["content-security-policy", "x-frame-options", "x-correlation-id", "content-type"] {
        let mut bare = answer(200, "");
        bare.headers.retain(|(name, _)| name != missing);
        // An answer without its policy counts as that of another server, and too few of ours would be left.
        let noticed = check(&request, &bare).is_err() || !bare.is_ours();
        ensure!(noticed, "a missing {missing} is not noticed");
    }
    Ok(())
}

fn is_correlation_id(text: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._=-".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(safe)
}

fn described(request: &Request) -> String {
    let text = String::from_utf8_lossy(&request.bytes).escape_debug().to_string();
    format!("{}: {}", request.kind, text.chars().take(600).collect::<String>())
}

fn shown(answer: &Answer) -> String {
    format!("{} {:?}\n{}", answer.status, answer.headers, answer.body.chars().take(1_500).collect::<String>())
}

#[test]
fn a_value_in_kv_that_is_no_task_is_left_out_with_a_notice_and_is_a_503_on_its_own() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        let edge = &product.edge;
        // A valid task under the key of another one.
        let (_, other) = edge.get("/api/tasks/task-1").await?;
        let values: [(&str, &[u8]); 10] = [
            ("bad-empty", b""),
            ("bad-text", b"<script>alert(1)</script>"),
            ("bad-json", b"{\"id\":\"bad-json\""),
            ("bad-list", b"[]"),
            ("bad-null", b"null"),
            ("bad-fields", b"{\"id\":\"bad-fields\"}"),
            ("bad-other", other.as_bytes()),
            ("bad-bytes", b"\xff\xfe\x00\xc3"),
            ("bad-deep", &[b'['; 100_000]),
            ("bad-%3Cimg%20src%3Dx%3E", b"1"),
        ];
        for (id, value) in values {
            edge.put(&format!("tasks%3A{id}"), value.to_vec()).await?;
        }

        for (id, _) in values {
            let (code, page) = edge.get(&format!("/tasks/{id}")).await?;
            ensure!(code == StatusCode::SERVICE_UNAVAILABLE, "/tasks/{id}: {code} {page}");
            ensure!(page.contains("This task cannot be shown") && !page.contains("alert(1)"), "{page}");
            let (code, answer) = edge.json(&format!("/api/tasks/{id}")).await?;
            ensure!(code == StatusCode::SERVICE_UNAVAILABLE, "/api/tasks/{id}: {code} {answer}");
            ensure!(answer["error"]["code"] == "task_unreadable", "{answer}");
        }

        let key = |id: &str| format!("tasks:{}", id.replace("%3Cimg%20src%3Dx%3E", "<img src=x>"));
        let keys: BTreeSet<String> = values.iter().map(|(id, _)| key(id)).collect();
        let (code, list) = edge.json("/api/tasks").await?;
        ensure!(code == StatusCode::OK && list["tasks"][0]["id"] == "task-1", "{code} {list}");
        ensure!(list["tasks"].as_array().is_some_and(|tasks| tasks.len() == 1), "{list}");
        let skipped: BTreeSet<String> = serde_json::from_value(list["skipped"].clone())?;
        ensure!(skipped == keys, "{skipped:?}");

        let (code, page) = edge.text("/").await?;
        ensure!(code == StatusCode::OK && page.contains("<stored-7f3>"), "{code} {page}");
        ensure!(page.contains(&format!("{} entries are not shown.", values.len())), "{page}");
        for key in &keys {
            ensure!(page.contains(key), "{key} is not named: {page}");
        }
        let (_, source) = edge.get("/").await?;
        ensure!(!source.contains("<img"), "a key is not escaped: {source}");
        let (code, health) = edge.json("/health").await?;
        ensure!(code == StatusCode::OK, "{code} {health}");
        println!("{} invalid values: left out, named, and a 503 each", values.len());
        Ok(())
    })
}
