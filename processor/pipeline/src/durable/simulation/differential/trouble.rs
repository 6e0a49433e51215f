//! Compares the answers of NATS without room, and during an election of a leader.

use std::time::Duration;

use async_nats::jetstream;
use prometheus::IntCounter;

use super::super::bucket::Full;
use super::asked::subject;
use super::real::Real;
use super::simulated::Simulated;
use super::step::{SUBJECTS, Step};
use super::{Seen, names};
use crate::durable::bucket::{Bucket, Revision, WriteError};
use crate::durable::ledger::store::Store;

pub(super) async fn compare_full_store(client: &async_nats::Client, replicas: usize) {
    let names = names();
    let simulated = Simulated::new(&names, replicas > 1);
    simulated.net.lock().unwrap().bucket.full = Some((Full::Everything, u64::MAX));
    let said = simulated.answered(simulated.asked.ledger(&Step::Overwrite { subject: 0 }, "no"));
    let jetstream = crate::durable::jetstream::context(client);
    let unlimited = jetstream::stream::Config {
        name: names.ledger_stream.clone(),
        subjects: vec![names.ledger_all()],
        max_messages_per_subject: 1,
        num_replicas: replicas,
        ..jetstream::stream::Config::default()
    };
    jetstream.create_stream(unlimited).await.unwrap();
    let bucket = Bucket::new(jetstream, &names.ledger_stream, IntCounter::new("forged", "forged").unwrap());
    let value = vec![b'-'; 100_000];
    let mut written = 0;
    let refused = loop {
        match bucket.set(subject(&names, written), value.clone()).await {
            Ok(_) => written += 1,
            // A new stream of a cluster has no leader yet.
            Err(WriteError::Missing) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => break error.to_string(),
        }
    };
    println!("{replicas} servers, {written} records of 100 kB written, then: {refused}");
    assert!(written > 0);
    assert_eq!(said, refused);
    // A cluster whose servers are all full has no leader from then on, as in an outage.
    if replicas == 1 {
        let expected = bucket.get(&subject(&names, 0)).await.unwrap().unwrap().revision;
        let replaced = bucket.compare_and_set(subject(&names, 0), value, expected, None).await;
        assert_eq!(said, replaced.unwrap_err().to_string());
    }
}

/// Compares the answers to a write while a cluster elects a leader. A real cluster must give only answers that the
/// simulated one gives; above all it must not refuse the write.
pub(super) async fn compare_elections(client: &async_nats::Client) {
    const ELECTIONS: usize = 12;
    let names = names();
    let real = Real::new(client, &names, 3).await;
    let stream = real.jetstream.get_stream(&names.ledger_stream).await.unwrap();
    let leader = async || {
        let cluster = stream.get_info().await.ok().and_then(|info| info.cluster)?;
        cluster.leader
    };
    let (mut elected, mut said) = (0, Seen::new());
    let mut known = [Revision(0); SUBJECTS];
    for _ in 0..ELECTIONS {
        let before = leader().await;
        let step_down = format!("STREAM.LEADER.STEPDOWN.{}", names.ledger_stream);
        // Its answer may be lost: the leader tells what happened.
        let _ = real.jetstream.request::<_, _, serde_json::Value>(step_down, &()).await;
        for round in 0..100 {
            let value = round.to_string();
            let writes = (0..SUBJECTS).map(|n| (n, Ok(real.asked.write(n, Some(known[n]), &value))));
            for (n, outcome) in real.asked.bucket.each(writes).await.unwrap() {
                let what = match outcome {
                    Ok(revision) => {
                        known[n] = revision;
                        "written"
                    }
                    Err(WriteError::Conflict) => {
                        let found = real.asked.bucket.get(&subject(&names, n)).await;
                        known[n] = found.ok().flatten().map_or(known[n], |found| found.revision);
                        "in conflict"
                    }
                    Err(WriteError::Busy) => "on its way, or the leader is not ready",
                    Err(WriteError::Missing) => "no leader",
                    Err(WriteError::Unknown(_)) => "not confirmed",
                    Err(error @ WriteError::Refused(_)) => panic!("in an election: {error}"),
                };
                *said.entry(what).or_default() += 1;
            }
        }
        elected += usize::from(leader().await.is_some_and(|now| Some(now) != before));
    }
    println!("3 servers, {elected} other leaders of {ELECTIONS} elections: {said:?}");
    assert!(elected > 0 && said.keys().any(|what| *what != "written"), "no write met an election: {said:?}");
}
