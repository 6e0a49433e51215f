//! 200 malformed or hostile events. Each invalid one is logged with its reason, counted and kept as a dead letter.
//! The valid ones land, and no text of them reaches a page unescaped.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use serde_json::{Value, json};
use taskpipeline_edge::{MemoryReader, router};
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, eventually};
use tower::ServiceExt;

const SOON: Duration = Duration::from_secs(30);
const MARK: &str = "<script>alert(7)</script>";

/// A message, the last token of its subject, and the id of the task if the event is valid.
struct Message {
    kind: &'static str,
    payload: Vec<u8>,
    lands: Option<String>,
}

fn bad(kind: &'static str, payload: impl AsRef<[u8]>) -> Message {
    Message { kind, payload: payload.as_ref().to_vec(), lands: None }
}

fn with_data(data: &Value) -> String {
    json!({"correlationId": "hostile", "data": data}).to_string()
}

fn good(id: &str, title: &str, description: &str) -> Message {
    let data = json!({"id": id, "title": title, "description": description, "status": "pending"});
    Message { kind: "created", payload: with_data(&data).into(), lands: Some(id.to_owned()) }
}

/// Ids and texts that are valid and awkward.
fn awkward() -> Vec<Message> {
    let mut messages = Vec::new();
    let ids = [
        "a/b",
        "../../etc/passwd",
        "%2e%2e",
        "%00",
        "...",
        "'; DROP TABLE tasks; --",
        "\"><img src=x onerror=alert(1)>",
        "😀",
        "\u{202e}gnp.exe",
        " ",
        "tasks:tasks:x",
        "a?b=c#d",
        "\\",
        "{{7*7}}",
        "${7*7}",
        "__proto__",
        "\u{feff}",
        "é",
        "e\u{301}",
        "\u{2028}",
    ];
    for id in ids {
        messages.push(good(id, MARK, "\" onmouseover=\"alert(1)"));
    }
    let titles = [
        "</title><svg onload=alert(1)>",
        "<!--",
        "&lt;b&gt;",
        "\u{202e}desrever",
        "\u{2066}isolated",
        "]]>",
        "javascript:alert(1)",
        "😀😀😀",
        "' autofocus onfocus='alert(1)",
        "{% raw %}",
        "\u{fff9}",
        "'\"`",
    ];
    for (n, title) in titles.into_iter().enumerate() {
        messages.push(good(&format!("title-{n}"), title, MARK));
    }
    messages.push(good(&"i".repeat(256), &"😀".repeat(200), &"\u{1}".repeat(2_000)));
    messages.push(good("nul-in-description", "t", "before\u{0}after"));
    // Five megabytes around a valid event: unknown fields are ignored, whatever their size and depth.
    let mut large: Value = serde_json::from_slice(&good("large", "t", "").payload).unwrap();
    large["ballast"] = json!("x".repeat(5_000_000));
    messages.push(Message {
        kind: "created",
        payload: large.to_string().into(),
        lands: Some("large".to_owned()),
    });
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let inside = format!(
        r#"{{"correlationId":"deep","data":{{"id":"deep","title":"t","description":"","status":"pending","x":{deep}}}}}"#
    );
    messages.push(Message { kind: "created", payload: inside.into(), lands: Some("deep".to_owned()) });
    messages
}

/// Messages that are not valid events.
fn hostile() -> Vec<Message> {
    let kinds = ["created", "updated", "deleted"];
    let mut messages = Vec::new();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_object = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    for kind in kinds {
        for payload in [
            "",
            "not json",
            "{",
            "null",
            "[]",
            "7",
            "\"text\"",
            "{}",
            "{\"data\": {}}",
            "\u{feff}{}",
            MARK,
            &deep,
            &deep_object,
        ] {
            messages.push(bad(kind, payload));
        }
        messages.push(bad(kind, vec![0xff, 0xfe, 0x00]));
        messages.push(bad(kind, vec![0; 1_000]));
        messages.push(bad(kind, vec![b'['; 5_000_000]));
        messages.push(bad(kind, r#"{"correlationId":"twice","data":{"id":"a","id":"b"}}"#));
        messages.push(bad(kind, r#"{"correlationId":"a","correlationId":"b","data":{"id":"a"}}"#));
        for id in [
            json!(null),
            json!(7),
            json!(["x"]),
            json!({}),
            json!(""),
            json!("."),
            json!(".."),
            json!("\u{0}"),
            json!("a\nb"),
            json!("\u{1b}[31mred"),
            json!("\u{85}"),
            json!("x".repeat(257)),
            json!("😀".repeat(65)),
        ] {
            messages.push(bad(
                kind,
                with_data(&json!({"id": id, "title": "t", "description": "", "status": "pending"})),
            ));
        }
        for correlation in
            [json!(""), json!("é"), json!("a\nb"), json!("x".repeat(129)), json!(7), json!("\u{202e}")]
        {
            let data = json!({"id": "a", "title": "t", "description": "", "status": "pending"});
            messages.push(bad(kind, json!({"correlationId": correlation, "data": data}).to_string()));
        }
    }
    let whole = with_data(&json!({"id": "cut", "title": "t", "description": "", "status": "pending"}));
    for at in (1..whole.len()).step_by(2) {
        messages.push(bad("created", &whole[..at]));
    }
    for (field, value) in [
        ("title", json!("")),
        ("title", json!("x".repeat(201))),
        ("title", json!("a\u{7}b")),
        ("title", json!(null)),
        ("description", json!("x".repeat(2_001))),
        ("description", json!(1.5)),
        ("status", json!("done")),
        ("status", json!(MARK)),
        ("status", json!(true)),
    ] {
        for kind in ["created", "updated"] {
            let mut data = json!({"id": "a", "title": "t", "description": "", "status": "pending"});
            data[field] = value.clone();
            messages.push(bad(kind, with_data(&data)));
        }
    }
    messages
}

async fn page(reader: &MemoryReader, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router(reader.clone()).oneshot(request).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 1 << 26).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn encoded(id: &str) -> String {
    id.bytes().fold(String::new(), |path, byte| path + &format!("%{byte:02X}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_hostile_events_are_refused_with_reasons_and_the_good_among_them_land() {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "max_payload: 8MB\n").unwrap();
    let nats = NatsServer::start_with(&["--config", config.path().to_str().unwrap()]).await.unwrap();
    let kv = Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap();
    let mut replica =
        Processor::start(&ProcessorOptions::new(&nats, &kv).set("STREAM_MAX_EVENT_BYTES", "8388608"))
            .await
            .unwrap();
    let client = nats.client().await.unwrap();
    let mut letters = client.subscribe("dead-letters.tasks").await.unwrap();
    client.flush().await.unwrap();

    // Valid and invalid messages alternate.
    let (mut good, bad) = (awkward(), hostile());
    let (good_count, bad_count) = (good.len(), bad.len());
    let every = bad_count / good_count;
    for (n, message) in bad.into_iter().enumerate() {
        let next = if n % every == 0 { good.pop() } else { None };
        for message in [Some(message), next].into_iter().flatten() {
            client.publish(format!("tasks.{}", message.kind), message.payload.into()).await.unwrap();
        }
    }
    let mut lands: Vec<_> = awkward().into_iter().filter_map(|message| message.lands).collect();
    for message in good {
        client.publish(format!("tasks.{}", message.kind), message.payload.into()).await.unwrap();
    }
    client.flush().await.unwrap();

    eventually(SOON, async || {
        let invalid = replica.metric("taskpipeline_events_invalid_total").await?;
        ensure!(invalid == bad_count as f64, "{invalid} of {bad_count} were refused");
        let landed = replica.landed().await?;
        ensure!(landed == good_count as f64, "{landed} of {good_count} have landed");
        let dead = replica.metric("taskpipeline_dead_letters_total").await?;
        ensure!(dead == bad_count as f64, "{dead} of {bad_count} are dead letters");
        Ok(())
    })
    .await
    .unwrap();
    let mut first_parts = 0;
    while let Ok(Some(letter)) = tokio::time::timeout(Duration::from_millis(500), letters.next()).await {
        let letter: Value = serde_json::from_slice(&letter.payload).unwrap();
        assert!(!letter["detail"].as_str().unwrap().is_empty());
        first_parts += usize::from(letter["part"] == 1);
    }
    assert_eq!(first_parts, bad_count);

    let mut keys = kv.keys();
    lands.sort();
    let mut ids: Vec<_> = keys.iter().map(|key| key.strip_prefix("tasks:").unwrap().to_owned()).collect();
    ids.sort();
    assert_eq!(ids, lands, "exactly the valid ones are in KV");

    // The edge's own pages with the tasks that landed.
    let reader = MemoryReader::new();
    for key in keys.drain(..) {
        let stored = kv.get(&key).unwrap();
        let metadata = stored.metadata.map(|metadata| metadata.to_string());
        reader.put_text(key, String::from_utf8(stored.value).unwrap(), metadata);
    }
    let mut pages = vec!["/?limit=1000".to_owned(), "/".to_owned()];
    pages.extend(lands.iter().map(|id| format!("/tasks/{}", encoded(id))));
    for path in &pages {
        let (status, html) = page(&reader, path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        for active in [
            "<script",
            "<svg onload",
            "<img src=x",
            "onerror=alert(1)>",
            "\" onmouseover=\"",
            "' autofocus onfocus='",
        ] {
            assert!(!html.contains(active), "{path} shows {active}");
        }
    }

    let (status, _) = replica.get("/livez").await.unwrap();
    assert_eq!(status, 200, "the process lives");
    assert!(replica.terminate(SOON).await.unwrap().success());
    let lines = replica.process().lines();
    let refused: Vec<_> = lines.iter().filter(|line| line.contains("refused an invalid message")).collect();
    assert_eq!(refused.len(), bad_count, "each is logged once");
    for line in refused {
        let reason = line.split_once("refused an invalid message").unwrap().1;
        assert!(reason.contains("subject=tasks.") && reason.contains(" error="), "{line}");
        assert!(reason.contains("not a JSON event: ") || reason.contains("invalid event: "), "{line}");
        assert!(line.len() < 2_000 && !line.chars().any(char::is_control), "{line:?}");
    }
    assert!(!lines.iter().any(|line| line.contains('\u{202e}')), "direction controls are escaped in logs");
    println!(
        "{bad_count} refused, logged, counted and kept; {good_count} landed; {} pages clean",
        pages.len()
    );
    assert!(bad_count + good_count >= 200);
}
