//! The request budget: the pipeline uses all of it and never more, whichever replica writes, and however much there
//! is to write.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use taskpipeline_simulator::{Config, Fault, Latency, Operation, RateLimit, Rule, Scope, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, created, eventually, publish, store};

/// Few requests in a short period, so that windows pass during a test.
const LIMIT: RateLimit = RateLimit { requests: 60, period: Duration::from_secs(10), ..RateLimit::CLOUDFLARE };

async fn limited() -> Simulator {
    let latency = Latency { least: Duration::from_millis(30), ..Latency::NONE };
    Simulator::start(Config { rate_limit: Some(LIMIT), latency, ..Config::default() }).await.unwrap()
}

fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv).set("RUST_LOG", "warn").set("SETTLE_AFTER", "3s").set("ACK_WAIT", "3s")
}

async fn wait_for_keys(kv: &Simulator, wanted: usize, within: Duration) {
    eventually(within, || async {
        let there = kv.keys().len();
        ensure!(there >= wanted, "{there} of {wanted} tasks are in KV");
        Ok(())
    })
    .await
    .unwrap();
}

/// The index of the replica that projects.
async fn active(replicas: &[Processor]) -> usize {
    eventually(Duration::from_secs(20), || async {
        for (n, replica) in replicas.iter().enumerate() {
            if replica.metric("taskpipeline_projector_active").await.unwrap_or(0.0) > 0.0 {
                return Ok(n);
            }
        }
        anyhow::bail!("no replica projects")
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_drains_under_load_never_spend_a_request_twice() {
    const EVENTS: u32 = 9_000;
    const FAIL_OVERS: usize = 6;
    let (nats, kv) = (NatsServer::start().await.unwrap(), limited().await);
    let options = options(&nats, &kv).set("REQUEST_BUDGET", "60/10s").set("BATCH_MAX_KEYS", "50");
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(Processor::start(&options).await.unwrap());
    }
    let events = (0..EVENTS).map(|n| ("created", created(&format!("task-{n}"))));
    assert_eq!(store(&nats.client().await.unwrap(), events).await.unwrap(), EVENTS);
    for round in 0..FAIL_OVERS {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let mut leaving = replicas.remove(active(&replicas).await);
        if round % 2 == 0 {
            leaving.kill().await.unwrap();
        } else {
            let ended = leaving.terminate(Duration::from_secs(20)).await.unwrap();
            assert!(ended.success(), "{ended}");
        }
        let left = kv.keys().len();
        assert!(left < EVENTS as usize, "all was written before the {round}. fail-over");
        replicas.push(Processor::start(&options).await.unwrap());
    }
    wait_for_keys(&kv, EVENTS as usize, Duration::from_secs(90)).await;
    let seen = kv.seen();
    println!("{FAIL_OVERS} fail-overs under load, 60 requests in 10 s allowed: {seen:?}");
    let requests = kv.requests();
    let most = (0..requests.len())
        .map(|n| requests[n..].iter().take_while(|one| one.at < requests[n].at + LIMIT.period).count())
        .max()
        .unwrap_or(0);
    println!("{} requests, at most {most} in any 10 s", requests.len());
    assert!(requests.len() >= 180, "there was little load");
    assert_eq!(seen.throttled, 0);
    assert!((40..=60).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_pipeline_spends_one_request_on_each_event() {
    const EVENTS: u32 = 25;
    let latency = Latency { least: Duration::from_millis(40), ..Latency::NONE };
    let kv = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
    let nats = NatsServer::start().await.unwrap();
    let _replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let client = nats.client().await.unwrap();
    for n in 0..EVENTS {
        publish(&client, "created", &created(&format!("task-{n}"))).await.unwrap();
        client.flush().await.unwrap();
        wait_for_keys(&kv, n as usize + 1, Duration::from_secs(10)).await;
        tokio::time::sleep(Duration::from_millis(350)).await;
    }
    let requests = kv.requests();
    println!("{EVENTS} events, {} requests", requests.len());
    assert_eq!(requests.len(), EVENTS as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_grow_to_the_most_and_shrink_when_kv_finds_one_too_slow() {
    const EVENTS: u32 = 60_000;
    let kv = Simulator::start(Config { rate_limit: None, ..Config::default() }).await.unwrap();
    let nats = NatsServer::start().await.unwrap();
    let options = options(&nats, &kv)
        .set("RETRY_DELAYS", "100ms")
        .set("REQUEST_BUDGET", "1200/5m")
        .set("STREAM_MAX_AGE", "1h");
    kv.inject(Rule::new(Fault::status(503)).on(Scope::Writes).named("down"));
    let _replica = Processor::start(&options).await.unwrap();
    let events = (0..EVENTS).map(|n| ("created", created(&format!("task-{n}"))));
    assert_eq!(store(&nats.client().await.unwrap(), events).await.unwrap(), EVENTS);
    kv.set_faults([]);
    let is_large = |keys| move |one: &taskpipeline_simulator::LoggedRequest| one.key_count >= keys;
    eventually(Duration::from_secs(60), || async {
        ensure!(kv.requests().iter().any(is_large(4_000)), "no batch of 4,000 yet");
        Ok(())
    })
    .await
    .unwrap();
    kv.inject(Rule::new(Fault::status(524)).on(Scope::Writes).times(8));
    wait_for_keys(&kv, EVENTS as usize, Duration::from_secs(120)).await;
    let puts: Vec<_> = kv
        .requests()
        .into_iter()
        .filter(|one| one.operation == Operation::BulkPut && one.answered != Some(503))
        .map(|one| (one.key_count, one.answered))
        .collect();
    println!("keys in each request, and its answer: {puts:?}");
    let failed = |(_, answered): &(usize, Option<u16>)| *answered == Some(524);
    let (first, last) = (puts.iter().position(failed).unwrap(), puts.iter().rposition(failed).unwrap());
    let before = puts[..first].iter().map(|(keys, _)| *keys).max().unwrap();
    let least = puts[first..].iter().map(|(keys, _)| *keys).min().unwrap();
    let after = puts[last..].iter().map(|(keys, _)| *keys).max().unwrap();
    println!("up to {before} keys, then {least}, then up to {after}");
    assert_eq!(puts.iter().filter(|put| failed(put)).count(), 8);
    assert!(before >= 4_000);
    assert!(least <= before / 4);
    assert!(after >= least * 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pipelines_that_share_a_token_are_warned() {
    let kv = Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap();
    let nats = [NatsServer::start().await.unwrap(), NatsServer::start().await.unwrap()];
    let mut replicas = Vec::new();
    let mut clients = Vec::new();
    for nats in &nats {
        replicas.push(Processor::start(&options(nats, &kv)).await.unwrap());
        clients.push(nats.client().await.unwrap());
    }
    for n in 0..80 {
        for client in &clients {
            publish(client, "created", &created(&format!("task-{n}"))).await.unwrap();
            client.flush().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let warned = |replica: &Processor| {
        let lines = replica.process().lines();
        lines.iter().any(|line| line.contains("other clients use the same Cloudflare token"))
    };
    println!("{} requests by two pipelines", kv.requests().len());
    eventually(Duration::from_secs(10), || async {
        ensure!(replicas.iter().any(warned), "no replica warns");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pipeline_alone_is_not_warned_of_itself() {
    let kv = Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap();
    let nats = NatsServer::start().await.unwrap();
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let client = nats.client().await.unwrap();
    for n in 0..120 {
        publish(&client, "created", &created(&format!("task-{n}"))).await.unwrap();
        client.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    wait_for_keys(&kv, 120, Duration::from_secs(30)).await;
    println!("{} requests", kv.requests().len());
    assert!(kv.requests().len() > 20);
    assert!(!replica.process().lines().iter().any(|line| line.contains("other clients use the same")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_daily_quota_is_told_as_what_it_is_and_nothing_is_lost() {
    let kv = Simulator::start(Config::default()).await.unwrap();
    let message = Some("KV put() limit exceeded for the day.".to_owned());
    kv.inject(Rule::new(Fault::Status { status: 429, code: Some(10_048), message }).on(Scope::Writes));
    let nats = NatsServer::start().await.unwrap();
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let client = nats.client().await.unwrap();
    publish(&client, "created", &created("a")).await.unwrap();
    client.flush().await.unwrap();
    eventually(Duration::from_secs(10), || async {
        let told = r#"kv_requests_total{operation="put",outcome="daily_quota"} 1"#;
        let (_, metrics) = replica.get("/metrics").await?;
        ensure!(metrics.contains(told), "the request is not counted");
        ensure!(
            replica.process().lines().iter().any(|line| line.contains("daily quota")),
            "the log does not mention it"
        );
        Ok(())
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(kv.requests().len(), 1, "a retry costs requests and cannot help");
}
