//! Mode `Core`: real replicas on a real nats-server write to the simulator, which has Cloudflare's limits.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, letter_payload, publish, publish_creates,
    stored_task,
};

const SOON: Duration = Duration::from_secs(20);

/// Checks the rules that every test must keep, whatever it is about.
fn assert_good_manners(kv: &Simulator) {
    let seen = kv.seen();
    assert_eq!(
        (seen.throttled, seen.refused, seen.overlapping_keys, seen.writes_too_soon),
        (0, 0, 0, 0),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_starts_events_make_change_and_remove_a_task() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let mut replica = Processor::start(&ProcessorOptions::new(&nats, &kv).core()).await.unwrap();
    let client = nats.client().await.unwrap();

    publish(
        &client,
        "created",
        &json!({"correlationId": "test-001", "data": {"id": "task-1", "title": "My First Task",
            "description": "This is a test task", "status": "pending"}}),
    )
    .await
    .unwrap();
    let first = eventually(SOON, async || stored_task(&kv, "task-1").ok_or(anyhow::anyhow!("no task")))
        .await
        .unwrap();
    assert_eq!(first["title"], "My First Task");
    assert_eq!(first["createdAt"], first["updatedAt"]);
    let metadata = kv.get("tasks:task-1").unwrap().metadata.unwrap();
    assert_eq!((&metadata["title"], &metadata["status"]), (&first["title"], &first["status"]));

    // The wait is longer than the task's rest: the replica forgets the task, and must ask KV what the update changes.
    eventually(SOON, async || {
        let in_memory = replica.metric("taskpipeline_tasks_in_memory").await?;
        ensure!(in_memory == 0.0, "{in_memory} tasks are in memory");
        Ok(())
    })
    .await
    .unwrap();
    publish(
        &client,
        "updated",
        &json!({"correlationId": "test-002", "data":
            {"id": "task-1", "status": "completed", "title": "My First Task (Done!)"}}),
    )
    .await
    .unwrap();
    let second = eventually(SOON, async || {
        let task = stored_task(&kv, "task-1").unwrap();
        ensure!(task["status"] == "completed", "{task}");
        Ok(task)
    })
    .await
    .unwrap();
    assert_eq!(second["title"], "My First Task (Done!)");
    assert_eq!(second["description"], "This is a test task");
    assert_eq!(second["createdAt"], first["createdAt"]);
    assert!(second["updatedAt"].as_str() > first["updatedAt"].as_str());

    publish(&client, "deleted", &json!({"correlationId": "test-003", "data": {"id": "task-1"}}))
        .await
        .unwrap();
    eventually(SOON, async || {
        ensure!(kv.keys().is_empty(), "still there");
        Ok(())
    })
    .await
    .unwrap();
    assert_good_manners(&kv);

    assert!(replica.terminate(SOON).await.unwrap().success());
    let lines = replica.process().lines();
    for step in [
        "[test-001] Received tasks.created",
        "[test-001] PUT tasks:task-1",
        "[test-001] Attempt 1/5",
        "[test-001] PUT tasks:task-1 successful",
        "[test-002] GET tasks:task-1",
        "[test-002] PUT tasks:task-1 successful",
        "[test-003] DELETE tasks:task-1 successful",
    ] {
        assert!(lines.iter().any(|line| line.ends_with(step)), "{step}\n{}", replica.process().tail());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_share_a_thousand_ids_and_process_each_event_once() {
    const IDS: u32 = 1_000;
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).core();
    let replicas = [Processor::start(&options).await.unwrap(), Processor::start(&options).await.unwrap()];
    let client = nats.client().await.unwrap();
    publish_creates(&client, IDS).await.unwrap();

    let mut handled = Vec::new();
    eventually(SOON, async || {
        let mut sum = 0.0;
        for replica in &replicas {
            sum += replica.landed().await?;
        }
        ensure!(sum >= f64::from(IDS), "{sum} of {IDS} have landed");
        Ok(())
    })
    .await
    .unwrap();
    for replica in &replicas {
        handled.push(replica.received().await.unwrap());
        let landed = replica.landed().await.unwrap();
        assert_eq!(Some(&landed), handled.last(), "what a replica received has landed");
    }
    let seen = kv.seen();
    println!("handled by each replica: {handled:?}; {seen:?}");
    assert_eq!(handled.iter().sum::<f64>(), f64::from(IDS), "each event is received once");
    assert_eq!(seen.keys_put, u64::from(IDS), "each task is written once");
    assert_eq!(kv.keys().len(), IDS as usize, "no event is lost");
    for share in handled {
        assert!(share >= 0.3 * f64::from(IDS), "one replica handled only {share}");
    }
    assert_good_manners(&kv);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_creates_land_at_cloudflares_limit_without_a_429() {
    const EVENTS: u32 = 100_000;
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).core().set("RUST_LOG", "warn");
    let replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    let begun = Instant::now();
    for n in 0..EVENTS {
        publish(&client, "created", &created(&format!("task-{n}"))).await.unwrap();
        if n % 10_000 == 0 {
            // Mode Core is at most once: a publisher that outruns a replica by 65,536 events loses some. This test
            // measures KV, which is much slower.
            eventually(SOON, async || {
                let received = replica.received().await?;
                ensure!(received >= f64::from(n.saturating_sub(20_000)), "{received} of {n} were received");
                Ok(())
            })
            .await
            .unwrap();
        }
    }
    client.flush().await.unwrap();
    let published = begun.elapsed();
    replica.wait_landed(EVENTS, Duration::from_secs(120)).await.unwrap();
    let took = begun.elapsed();

    let seen = kv.seen();
    println!(
        "{EVENTS} events published in {:.1} s and landed in {:.1} s: {:.0} events/s with {} requests, \
         {:.0} events a request, at most {} requests in five minutes, {} answered with 429",
        published.as_secs_f64(),
        took.as_secs_f64(),
        f64::from(EVENTS) / took.as_secs_f64(),
        seen.total_requests(),
        f64::from(EVENTS) / seen.total_requests() as f64,
        seen.most_in_sliding_window,
        seen.throttled,
    );
    assert_eq!(kv.config().rate_limit, Some(taskpipeline_simulator::RateLimit::CLOUDFLARE));
    assert_eq!(kv.keys().len(), EVENTS as usize, "every task is there");
    assert_good_manners(&kv);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_events_to_one_task_while_a_request_is_out_become_one_write() {
    let nats = NatsServer::start().await.unwrap();
    let latency = Latency { least: Duration::from_millis(500), ..Latency::NONE };
    let kv = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
    let replica = Processor::start(&ProcessorOptions::new(&nats, &kv).core()).await.unwrap();
    let client = nats.client().await.unwrap();

    publish(&client, "created", &created("hot")).await.unwrap();
    for n in 0..50 {
        let event =
            json!({"correlationId": format!("u-{n}"), "data": {"id": "hot", "title": format!("Title {n}")}});
        publish(&client, "updated", &event).await.unwrap();
    }
    for n in 0..20 {
        publish(&client, "created", &created(&format!("cold-{n}"))).await.unwrap();
    }
    replica.wait_landed(71, SOON).await.unwrap();

    assert_eq!(stored_task(&kv, "hot").unwrap()["title"], "Title 49");
    let seen = kv.seen();
    println!("71 events: {seen:?}");
    assert!(seen.keys_put <= 22, "20 cold tasks and at most 2 writes of the hot one: {seen:?}");
    assert!(seen.total_requests() <= 4, "{seen:?}");
    assert_good_manners(&kv);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_a_task_that_never_was_shows_nothing_and_is_counted() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let replica = Processor::start(&ProcessorOptions::new(&nats, &kv).core()).await.unwrap();
    let client = nats.client().await.unwrap();
    let event = json!({"correlationId": "u", "data": {"id": "never", "title": "Ghost"}});
    publish(&client, "updated", &event).await.unwrap();
    eventually(SOON, async || {
        ensure!(replica.metric("taskpipeline_updates_of_unknown_tasks_total").await? == 1.0, "not counted");
        Ok(())
    })
    .await
    .unwrap();
    assert!(kv.keys().is_empty());
    assert_eq!(kv.seen().keys_put, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_becomes_a_dead_letter_with_its_bytes_and_headers() {
    use futures_util::StreamExt;
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let replica = Processor::start(&ProcessorOptions::new(&nats, &kv).core()).await.unwrap();
    let client = nats.client().await.unwrap();
    let mut letters = client.subscribe("dead-letters.tasks").await.unwrap();

    let mut headers = async_nats::HeaderMap::new();
    headers.insert("X-Producer", "shop");
    let bad = r#"{"correlationId": "bad", "data": {"id": "", "title": "", "status": "done"}}"#;
    client.publish_with_headers("tasks.created", headers, bad.into()).await.unwrap();
    publish(&client, "created", &created("good")).await.unwrap();

    let letter = tokio::time::timeout(SOON, letters.next()).await.unwrap().unwrap();
    let letter: Value = serde_json::from_slice(&letter.payload).unwrap();
    assert_eq!(letter["reason"], "invalid");
    assert_eq!(letter["subject"], "tasks.created");
    assert_eq!(letter["headers"]["X-Producer"], json!(["shop"]));
    let fields: Vec<_> = letter["faults"].as_array().unwrap().iter().map(|fault| &fault["field"]).collect();
    assert_eq!(fields, ["data.id", "data.title", "data.description", "data.status"]);
    assert_eq!(letter_payload(&letter).unwrap(), bad.as_bytes());

    replica.wait_landed(1, SOON).await.unwrap();
    assert_eq!(kv.keys(), ["tasks:good"], "the next event is not held up");
    assert_eq!(replica.metric("taskpipeline_dead_letters_total").await.unwrap(), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_what_is_and_readiness_waits_for_nats() {
    let mut nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    nats.kill().await.unwrap();
    let replica = Processor::spawn(&ProcessorOptions::new(&nats, &kv).core()).unwrap();
    eventually(SOON, async || replica.get("/livez").await.map(drop)).await.unwrap();
    assert_eq!(replica.get("/readyz").await.unwrap().0, 503);
    let (status, health) = replica.get("/health").await.unwrap();
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!((status, &health["status"]), (503, &json!("degraded")), "{health}");

    nats.restart().await.unwrap();
    replica.wait_ready(SOON).await.unwrap();
    let client = nats.client().await.unwrap();
    publish(&client, "created", &created("a")).await.unwrap();
    client.flush().await.unwrap();
    replica.wait_landed(1, SOON).await.unwrap();
    let (status, health) = replica.get("/health").await.unwrap();
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(status, 200, "{health}");
    assert_eq!(health["services"]["nats"]["status"], "connected");
    assert_eq!(health["services"]["kv"]["status"], "reachable");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptime"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_writes_what_is_in_hand_and_ends_well() {
    let nats = NatsServer::start().await.unwrap();
    let latency = Latency { least: Duration::from_millis(500), ..Latency::NONE };
    let kv = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
    let mut replica = Processor::start(&ProcessorOptions::new(&nats, &kv).core()).await.unwrap();
    let client = nats.client().await.unwrap();
    publish_creates(&client, 2_000).await.unwrap();
    eventually(SOON, async || {
        ensure!(replica.metric("taskpipeline_events_waiting").await? > 0.0, "no event is in flight");
        Ok(())
    })
    .await
    .unwrap();
    assert!(kv.keys().len() < 2_000, "all had landed before the signal: the test proves nothing");
    let status = replica.terminate(Duration::from_secs(30)).await.unwrap();
    assert!(status.success(), "{status}\n{}", replica.process().tail());
    assert_eq!(kv.keys().len(), 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_environment_is_refused_with_every_variable_named() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).set("DELIVERY_MODE", "Sometimes").set("CF_API_TOKEN", "");
    let mut replica = Processor::spawn(&options).unwrap();
    let status = replica.wait(SOON).await.unwrap();
    assert!(!status.success());
    let output = replica.process().lines().join("\n");
    assert!(output.contains("DELIVERY_MODE: ") && output.contains("CF_API_TOKEN: "), "{output}");
}

/// The fields of each task after an in-order replay of these events.
fn replayed(events: &[(&'static str, Value)]) -> BTreeMap<String, Value> {
    let mut tasks: BTreeMap<String, Value> = BTreeMap::new();
    for (kind, event) in events {
        let data = &event["data"];
        let id = data["id"].as_str().unwrap().to_owned();
        match (*kind, tasks.get_mut(&id)) {
            ("created", _) => drop(tasks.insert(id, data.clone())),
            ("deleted", _) => drop(tasks.remove(&id)),
            (_, Some(task)) => {
                for (field, value) in data.as_object().unwrap() {
                    task[field] = value.clone();
                }
            }
            (_, None) => {}
        }
    }
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_equals_an_in_order_replay_of_bursts_over_few_tasks() {
    const EVENTS: usize = 5_000;
    const IDS: usize = 200;
    let nats = NatsServer::start().await.unwrap();
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    let kv = Simulator::start(config).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).core().set("RUST_LOG", "warn");
    let replica = Processor::start(&options.set("REQUEST_BUDGET", "1000000/5m")).await.unwrap();
    let client = nats.client().await.unwrap();
    let (mut dice, mut events) = (0x9e37_79b9_7f4a_7c15_u64, Vec::new());
    let mut draw = move |most: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(dice >> 33).unwrap() % most
    };
    for n in 0..EVENTS {
        let id = format!("task-{}", draw(IDS));
        let correlation_id = format!("c-{n}");
        let (title, description) = (format!("Title {n}"), format!("Description {n}"));
        events.push(match draw(10) {
            0..3 => (
                "created",
                json!({"correlationId": correlation_id, "data":
                {"id": id, "title": title, "description": description, "status": "pending"}}),
            ),
            3..5 => ("deleted", json!({"correlationId": correlation_id, "data": {"id": id}})),
            5..8 => ("updated", json!({"correlationId": correlation_id, "data": {"id": id, "title": title}})),
            _ => (
                "updated",
                json!({"correlationId": correlation_id, "data":
                {"id": id, "description": description, "status": "completed"}}),
            ),
        });
    }
    for burst in events.chunks(1_000) {
        for (kind, event) in burst {
            publish(&client, kind, event).await.unwrap();
        }
        // Other programs use the prefix, too.
        client.publish("tasks.other", "{}".into()).await.unwrap();
        client.flush().await.unwrap();
    }
    eventually(Duration::from_secs(60), async || {
        let (received, waiting) =
            (replica.received().await?, replica.metric("taskpipeline_events_waiting").await?);
        let out = replica.metric("taskpipeline_kv_requests_in_flight").await?;
        ensure!(received == EVENTS as f64 && waiting == 0.0 && out == 0.0, "{received}, {waiting}, {out}");
        Ok(())
    })
    .await
    .unwrap();
    let expected = replayed(&events);
    let (mut missing, mut stale) = (0, 0);
    for (id, task) in &expected {
        let Some(found) = stored_task(&kv, id) else {
            missing += 1;
            continue;
        };
        let same = |field: &str| found[field] == task[field];
        stale += u32::from(!(same("title") && same("description") && same("status")));
    }
    let extra = kv.keys().len() - (expected.len() - missing);
    println!(
        "{EVENTS} events over {IDS} ids: {missing} missing, {stale} stale and {extra} extra of {} tasks, {} requests",
        expected.len(),
        kv.seen().total_requests()
    );
    assert_eq!((missing, stale, extra), (0, 0, 0));
    assert_eq!(replica.metric("taskpipeline_events_dropped_total").await.unwrap(), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_on_ipv6_and_on_ipv4_unless_it_is_told_where() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let anywhere = Processor::start(&ProcessorOptions::new(&nats, &kv).set("HOST", "")).await.unwrap();
    let get = async |host: &str, port: u16| {
        let url = format!("http://{host}:{port}/health");
        taskpipeline_testkit::http().get(url).send().await.map(|answer| answer.status().as_u16())
    };
    let both = (get("127.0.0.1", anywhere.port()).await, get("[::1]", anywhere.port()).await);
    println!("IPv4 and IPv6: {both:?}");
    assert!(matches!(both, (Ok(200), Ok(200))), "{both:?}");
    // With an address in the settings, only this address is served.
    let local = Processor::start(&ProcessorOptions::new(&nats, &kv)).await.unwrap();
    assert!(matches!(get("127.0.0.1", local.port()).await, Ok(200)));
    assert!(get("[::1]", local.port()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_above_a_third_of_the_settle_time_is_refused_at_the_start() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).set("REQUEST_TIMEOUT", "11s");
    let mut replica = Processor::spawn(&options).unwrap();
    assert!(!replica.wait(SOON).await.unwrap().success());
    let said = replica.process().lines().join("\n");
    println!("{said}");
    assert!(said.contains("REQUEST_TIMEOUT: ") && said.contains("SETTLE_AFTER"), "{said}");
    Processor::start(&options.set("SETTLE_AFTER", "33s")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn durations_that_no_clock_can_count_are_refused_at_the_start() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let long = [
        ("MIN_WRITE_INTERVAL", "18446744073709551615s"),
        ("RETRY_DELAYS", "1s,1000years"),
        ("SETTLE_AFTER", "584542046090years"),
        ("REQUEST_BUDGET", "1100/1000years"),
    ];
    for (name, value) in long {
        let mut replica = Processor::spawn(&ProcessorOptions::new(&nats, &kv).set(name, value)).unwrap();
        let status = replica.wait(SOON).await.unwrap_or_else(|error| panic!("{name}={value}: {error}"));
        let said = replica.process().lines().join("\n");
        println!("{name}={value}: {}", said.lines().last().unwrap_or_default());
        assert!(!status.success() && said.contains(&format!("{name}: must be")), "{said}");
    }
}
