//! One replica projects at a time; another takes over.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use taskpipeline_simulator::{Config, Fault, Latency, Rule, Scope, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, created, eventually, store};
use tokio::time::Instant;

const PENDING: u32 = 10_000;

async fn kv() -> Simulator {
    let latency = Latency { least: Duration::from_millis(20), ..Latency::NONE };
    Simulator::start(Config { rate_limit: None, latency, ..Config::default() }).await.unwrap()
}

fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv)
        .set("RUST_LOG", "warn,taskpipeline_pipeline::durable::control::holder=info")
        .set("REQUEST_BUDGET", "1000000/5m")
        .set("SETTLE_AFTER", "3s")
        .set("REQUEST_TIMEOUT", "1s")
        .set("ACK_WAIT", "3s")
}

async fn is_active(processor: &Processor) -> bool {
    processor.metric("taskpipeline_projector_active").await.unwrap_or(0.0) > 0.0
}

/// The index of the replica that projects.
async fn active(replicas: &[Processor]) -> usize {
    for _ in 0..200 {
        for (n, replica) in replicas.iter().enumerate() {
            if is_active(replica).await {
                return n;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no replica projects");
}

/// The time of the first request that KV answered after this instant.
async fn first_write_after(kv: &Simulator, moment: Instant) -> Duration {
    eventually(Duration::from_secs(20), || async {
        let requests = kv.requests();
        let first = requests.iter().find(|request| request.at > moment && request.answered == Some(200));
        first.map(|request| request.at - moment).ok_or_else(|| anyhow::anyhow!("no write yet"))
    })
    .await
    .unwrap()
}

/// Stores this many new tasks while KV is down, and waits until they are all pending in the projector.
async fn pend(nats: &NatsServer, kv: &Simulator, projector: &Processor, round: u32) {
    kv.inject(Rule::new(Fault::status(503)).on(Scope::Writes).named("down"));
    let client = nats.client().await.unwrap();
    let events = (0..PENDING).map(|n| ("created", created(&format!("{round}-{n}"))));
    assert_eq!(store(&client, events).await.unwrap(), PENDING);
    eventually(Duration::from_secs(20), || async {
        let pending = projector.metric("taskpipeline_projector_unsettled_tasks").await?;
        anyhow::ensure!(pending >= f64::from(PENDING), "{pending} of {PENDING} pending");
        Ok(())
    })
    .await
    .unwrap();
}

async fn all_there(kv: &Simulator, rounds: u32, replicas: &[Processor]) {
    let wanted = usize::try_from(rounds * PENDING).unwrap();
    let waited = eventually(Duration::from_secs(60), || async {
        let there = kv.keys().len();
        anyhow::ensure!(there == wanted, "{there} of {wanted} tasks are in KV");
        Ok(())
    });
    if let Err(error) = waited.await {
        for replica in replicas {
            let metrics = replica.get("/metrics").await.map(|(_, text)| text).unwrap_or_default();
            let told =
                |line: &&str| line.contains("projector") || line.contains("kv_") && !line.contains("bucket");
            let metrics: Vec<_> =
                metrics.lines().filter(|line| !line.starts_with('#')).filter(told).collect();
            println!("{}\n{}", metrics.join("\n"), replica.process().tail());
        }
        panic!("{error:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_of_the_projector_with_10000_pending_another_writes_within_10_s() {
    const ROUNDS: u32 = 20;
    let (nats, kv) = (NatsServer::start().await.unwrap(), kv().await);
    let options = options(&nats, &kv);
    let mut replicas =
        vec![Processor::start(&options).await.unwrap(), Processor::start(&options).await.unwrap()];
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        let first = active(&replicas).await;
        pend(&nats, &kv, &replicas[first], round).await;
        kv.remove_faults("down");
        let killed = Instant::now();
        replicas.remove(first).kill().await.unwrap();
        gaps.push(first_write_after(&kv, killed).await);
        all_there(&kv, round + 1, &replicas).await;
        replicas.push(Processor::start(&options).await.unwrap());
    }
    gaps.sort();
    let longest = *gaps.last().unwrap();
    println!(
        "{ROUNDS} kills with {PENDING} tasks pending each; from kill to the next write: median {:?}, longest {longest:?}; \
         {} tasks in KV",
        gaps[gaps.len() / 2],
        kv.keys().len()
    );
    assert_eq!(gaps.len(), usize::try_from(ROUNDS).unwrap());
    assert!(longest <= Duration::from_secs(10), "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_projector_drains_another_writes_within_a_second() {
    const ROUNDS: u32 = 5;
    let (nats, kv) = (NatsServer::start().await.unwrap(), kv().await);
    let options = options(&nats, &kv);
    let mut replicas =
        vec![Processor::start(&options).await.unwrap(), Processor::start(&options).await.unwrap()];
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        let first = active(&replicas).await;
        pend(&nats, &kv, &replicas[first], round).await;
        kv.remove_faults("down");
        let mut drained = replicas.remove(first);
        let asked = Instant::now();
        let ended = drained.terminate(Duration::from_secs(20)).await.unwrap();
        assert!(ended.success(), "{ended}\n{}", drained.process().tail());
        // The drained replica may have written after the signal; the gap is that of its successor.
        let successor = &replicas[0];
        eventually(Duration::from_secs(5), || async {
            anyhow::ensure!(is_active(successor).await, "no replica has taken over");
            Ok(())
        })
        .await
        .unwrap();
        let requests = kv.requests();
        let mut writes: Vec<_> =
            requests.iter().filter(|it| it.at > asked && it.answered == Some(200)).map(|it| it.at).collect();
        writes.insert(0, asked);
        let gap = match writes.len() {
            1 => first_write_after(&kv, asked).await,
            _ => writes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap(),
        };
        gaps.push(gap);
        all_there(&kv, round + 1, &replicas).await;
        replicas.push(Processor::start(&options).await.unwrap());
    }
    let longest = *gaps.iter().max().unwrap();
    println!(
        "{ROUNDS} drains with {PENDING} tasks pending each: the longest gap without a write {longest:?}; all {} tasks in KV",
        kv.keys().len()
    );
    assert!(longest <= Duration::from_secs(1), "{gaps:?}");
}

/// The control record; `None` if no replica has ever taken it.
async fn control_record(nats: &NatsServer) -> Option<serde_json::Value> {
    let jetstream = async_nats::jetstream::new(nats.client().await.unwrap());
    let ledger = jetstream.get_stream("KV_TASKS--tasks-processor").await.ok()?;
    let mut names = ledger.info_with_subjects("$KV.TASKS--tasks-processor.control.>").await.ok()?;
    let subject = std::pin::pin!(&mut names).next().await?.ok()?.0;
    let record = ledger.get_last_raw_message_by_subject(&subject).await.ok()?;
    serde_json::from_slice(&record.payload).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_told_to_stop_while_it_takes_over_does_not_keep_the_next_one_waiting() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), kv().await);
    // The replica stops before it writes that it takes over, and continues after it has received SIGTERM.
    let mut replica = Processor::spawn(&options(&nats, &kv).stopping_at("taking-over", 1)).unwrap();
    eventually(Duration::from_secs(20), async || {
        // It logs this before it stops.
        anyhow::ensure!(replica.process().tail().contains("stands still at taking-over"), "not yet");
        anyhow::ensure!(replica.process().is_stopped().await?, "not quite yet");
        Ok(())
    })
    .await
    .unwrap();
    assert!(control_record(&nats).await.is_none(), "a replica has already taken over");
    replica.process().signal(Signal::SIGTERM).unwrap();
    replica.process().signal(Signal::SIGCONT).unwrap();
    replica.wait(Duration::from_secs(10)).await.unwrap();

    let control = control_record(&nats).await.unwrap_or_default();
    println!("the replica got SIGTERM while it took over, and left {control}");
    assert_eq!(control["term"], 1, "it never took over: the test proves nothing");
    assert!(control["holder"].is_null(), "the record still has a holder");
    assert_eq!(control["clean"], true, "nothing was sent");
}
