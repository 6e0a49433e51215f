//! Mode `Durable` without faults: acks, sharing, fairness, and the settings with which it refuses to start.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::future::IntoFuture;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use async_nats::jetstream;
use serde_json::json;
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, SlowLink, created, eventually, publish, store, stored_task,
};
use tokio::time::Instant;

async fn fast_kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

fn quiet(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv)
        .set("RUST_LOG", "warn,taskpipeline_pipeline=warn")
        .set("REQUEST_BUDGET", "1000000/5m")
}

async fn wait_for_keys(kv: &Simulator, wanted: usize, within: Duration) {
    eventually(within, || async {
        let there = kv.keys().len();
        ensure!(there == wanted, "{there} of {wanted} tasks are in KV");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jetstream_publisher_gets_its_ack_in_under_a_second_at_p99_and_plain_publishes_land_too() {
    const EVENTS: u32 = 10_000;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let options = quiet(&nats, &kv);
    let _replicas = [Processor::start(&options).await.unwrap(), Processor::start(&options).await.unwrap()];
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    let mut waits = Vec::new();
    for n in 0..EVENTS {
        // Every other event is published like `nats pub` does.
        if n % 2 == 0 {
            publish(&client, "created", &created(&format!("plain-{n}"))).await.unwrap();
        } else {
            let event = created(&format!("acked-{n}")).to_string();
            let asked = Instant::now();
            stream.publish("tasks.created", event.into()).await.unwrap().into_future().await.unwrap();
            waits.push(asked.elapsed());
        }
    }
    client.flush().await.unwrap();
    wait_for_keys(&kv, usize::try_from(EVENTS).unwrap(), Duration::from_secs(30)).await;
    waits.sort();
    let (median, p99) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    println!(
        "{} acks: median {median:?}, p99 {p99:?}; {} plain publishes; all in KV",
        waits.len(),
        EVENTS / 2
    );
    assert!(p99 < Duration::from_secs(1), "{p99:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_4_replicas_handles_at_least_a_tenth_of_20000_events() {
    const EVENTS: u32 = 20_000;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let options = quiet(&nats, &kv);
    let mut replicas = Vec::new();
    for _ in 0..4 {
        replicas.push(Processor::start(&options).await.unwrap());
    }
    let client = nats.client().await.unwrap();
    store(&client, (0..EVENTS).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
    wait_for_keys(&kv, usize::try_from(EVENTS).unwrap(), Duration::from_secs(30)).await;
    let mut handled = Vec::new();
    for replica in &replicas {
        handled.push(replica.metric("taskpipeline_events_stored_total").await.unwrap());
    }
    println!("{EVENTS} events, handled by each of 4 replicas: {handled:?}");
    assert!(handled.iter().sum::<f64>() >= f64::from(EVENTS));
    assert!(handled.iter().all(|count| *count >= f64::from(EVENTS) / 10.0), "{handled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_starts_on_a_backlog_has_each_event_delivered_once() {
    const ROUNDS: u32 = 5;
    const EVENTS: u32 = 500;
    // Twice `ACK_WAIT`: a delivery that no replica has processed comes again after that.
    const PATIENCE: Duration = Duration::from_secs(60);
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    // The server answers a pull before it learns that the client has cancelled it.
    let link = SlowLink::to(nats.port(), Duration::from_millis(20)).await.unwrap();
    let options = quiet(&nats, &kv).set("NATS_URL", &format!("nats://127.0.0.1:{}", link.port()));
    let client = nats.client().await.unwrap();
    let mut replica = Processor::start(&options).await.unwrap();
    let stream = jetstream::new(client.clone()).get_stream("TASKS").await.unwrap();
    let (mut longest, mut again) = (Duration::ZERO, 0.0);
    for round in 1..=ROUNDS {
        assert!(replica.terminate(PATIENCE).await.unwrap().success());
        let events = (0..EVENTS).map(|n| ("created", created(&format!("task-{round}-{n}"))));
        store(&client, events).await.unwrap();
        let began = Instant::now();
        replica = Processor::start(&options).await.unwrap();
        wait_for_keys(&kv, usize::try_from(round * EVENTS).unwrap(), PATIENCE).await;
        longest = longest.max(began.elapsed());
        again += replica.metric("taskpipeline_events_redelivered_total").await.unwrap();
    }
    let consumer = stream.consumer_info("tasks-processor-1").await.unwrap();
    let delivered = consumer.delivered.consumer_sequence;
    println!(
        "{ROUNDS} starts on {EVENTS} events each: {delivered} deliveries, {again} of them again; all in KV \
         {longest:.1?} after a start at the latest"
    );
    assert_eq!((delivered, again), (u64::from(ROUNDS * EVENTS), 0.0));
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_updated_five_times_a_second_under_a_backlog_of_4000_is_written_within_15_s_again_and_again() {
    const BACKLOG: f64 = 4_000.0;
    const SECONDS: u64 = 60;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    // 2.25 requests a second with 200 keys each: writing 4,000 tasks takes 9 s.
    let options = quiet(&nats, &kv).set("BATCH_MAX_KEYS", "200").set("REQUEST_BUDGET", "25/10s");
    let replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    let (mut cold, mut least_backlog, mut updates, mut seen, mut oldest) =
        (0, f64::MAX, 0, Vec::<String>::new(), Duration::ZERO);
    store(&client, [("created", created("hot"))].into_iter()).await.unwrap();
    eventually(Duration::from_secs(10), || async {
        stored_task(&kv, "hot").map(|_| ()).ok_or_else(|| anyhow::anyhow!("not there"))
    })
    .await
    .unwrap();
    let began = Instant::now();
    let mut measuring = false;
    while began.elapsed() < Duration::from_secs(SECONDS) {
        let update =
            json!({"correlationId": "c", "data": {"id": "hot", "title": format!("title {updates}")}});
        publish(&client, "updated", &update).await.unwrap();
        updates += 1;
        let backlog = replica.metric("taskpipeline_projector_unsettled_tasks").await.unwrap();
        if measuring {
            least_backlog = least_backlog.min(backlog);
        }
        let missing = 4_400.0 - backlog;
        if missing > 0.0 {
            let more: u32 = format!("{missing:.0}").parse().unwrap();
            store(&client, (cold..cold + more).map(|n| ("created", created(&format!("cold-{n}")))))
                .await
                .unwrap();
            cold += more;
        } else {
            measuring = true;
        }
        let task = stored_task(&kv, "hot").unwrap();
        let updated_at = task["updatedAt"].as_str().unwrap().to_owned();
        let at = taskpipeline_contract::Timestamp::parse(&updated_at).unwrap().to_unix_millis();
        oldest = oldest.max(now().saturating_sub(Duration::from_millis(u64::try_from(at).unwrap())));
        if seen.last() != Some(&updated_at) {
            seen.push(updated_at);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let written = kv.keys().len();
    println!(
        "{updates} updates of one task in {SECONDS} s over a backlog of at least {least_backlog} tasks, {written} \
         written meanwhile: KV had {} of its states, never one older than {oldest:?}",
        seen.len()
    );
    assert!(measuring && least_backlog >= BACKLOG, "the backlog went down to {least_backlog}");
    assert!(seen.len() >= 4, "{seen:?}");
    assert!(oldest <= Duration::from_secs(15), "{oldest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pipelines_on_one_server_do_not_meet() {
    let nats = NatsServer::start().await.unwrap();
    let (one, two) = (fast_kv().await, fast_kv().await);
    let _first = Processor::start(&quiet(&nats, &one)).await.unwrap();
    let second = quiet(&nats, &two)
        .set("STREAM_NAME", "OTHER")
        .set("SUBJECT_PREFIX", "other")
        .set("QUEUE_GROUP", "other-processor");
    let _second = Processor::start(&second).await.unwrap();
    let client = nats.client().await.unwrap();
    publish(&client, "created", &created("mine")).await.unwrap();
    let event = created("yours").to_string();
    client.publish("other.created", event.into()).await.unwrap();
    wait_for_keys(&one, 1, Duration::from_secs(10)).await;
    wait_for_keys(&two, 1, Duration::from_secs(10)).await;
    assert_eq!((one.keys(), two.keys()), (vec!["tasks:mine".to_owned()], vec!["tasks:yours".to_owned()]));
}

async fn refusal(options: &ProcessorOptions) -> String {
    let mut processor = Processor::spawn(options).unwrap();
    let ended = processor.wait(Duration::from_secs(10)).await.unwrap();
    assert!(!ended.success());
    processor.process().lines().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_does_not_fit_is_refused_with_everything_that_is_wrong() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let stream = jetstream::new(nats.client().await.unwrap());
    let config = jetstream::stream::Config {
        name: "TASKS".to_owned(),
        subjects: vec!["tasks.created".to_owned(), "tasks.updated".to_owned()],
        retention: jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    stream.create_stream(config).await.unwrap();
    let said = refusal(&ProcessorOptions::new(&nats, &kv)).await;
    for wanted in ["TASKS", "tasks.deleted", "retention", "STREAM_NAME"] {
        assert!(said.contains(wanted), "{said}");
    }
    println!("{}", said.lines().last().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_that_another_stream_captures_are_told_and_that_stream_can_be_named() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let client = nats.client().await.unwrap();
    let config = jetstream::stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["tasks.>".to_owned()],
        ..Default::default()
    };
    jetstream::new(client.clone()).create_stream(config).await.unwrap();
    let said = refusal(&ProcessorOptions::new(&nats, &kv)).await;
    assert!(said.contains("another stream already captures") && said.contains("STREAM_NAME"), "{said}");
    let _replica = Processor::start(&quiet(&nats, &kv).set("STREAM_NAME", "EVENTS")).await.unwrap();
    publish(&client, "created", &created("task-1")).await.unwrap();
    wait_for_keys(&kv, 1, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_jetstream_it_refuses_to_start_and_names_core() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("nats.conf");
    std::fs::write(
        &config,
        "accounts { PLAIN: { users: [ {user: me, password: pw} ] } }\nno_auth_user: me\n",
    )
    .unwrap();
    let nats = NatsServer::start_with(&["-c", config.to_str().unwrap()]).await.unwrap();
    let kv = fast_kv().await;
    let said = refusal(&ProcessorOptions::new(&nats, &kv)).await;
    assert!(said.contains("JetStream") && said.contains("DELIVERY_MODE=Core"), "{said}");
    println!("{}", said.lines().last().unwrap());
}
