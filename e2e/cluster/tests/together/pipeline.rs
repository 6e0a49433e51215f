//! A pipeline in the cluster, as its users handle it: pods really run, and events really land.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::Role;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use taskpipeline_e2e_cluster::{
    Forward, Namespace, NatsPod, OperatorPods, PROCESSORS, Producer, SimulatorPod, condition, create,
    eventually, kv_secret, minimal, present, ready, sum, within,
};
use taskpipeline_operator::api::TaskPipeline;
use taskpipeline_simulator::{Fault, Rule, Scope};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(60);

/// A namespace with everything except a pipeline.
struct Bench {
    namespace: Namespace,
    nats: NatsPod,
    kv: SimulatorPod,
}

impl Bench {
    async fn start(prefix: &str) -> Self {
        let namespace = Namespace::new(prefix).await.unwrap();
        let (nats, kv, operator) = tokio::join!(
            NatsPod::start(&namespace, None),
            SimulatorPod::start(&namespace, "token-1"),
            OperatorPods::start(&namespace, 1),
        );
        operator.unwrap();
        Self { nats: nats.unwrap(), kv: kv.unwrap(), namespace }
    }

    /// Creates the same with a pipeline that is ready.
    async fn with_pipeline(prefix: &str, more: &Value) -> Self {
        let bench = Self::start(prefix).await;
        kv_secret(&bench.namespace, "kv", "token-1").await.unwrap();
        bench.namespace.apply::<TaskPipeline>(minimal(more)).await.unwrap();
        eventually(SOON, async || condition(&bench.namespace, "Ready", "True").await).await.unwrap();
        bench
    }

    async fn publish(&self, id: &str) {
        let client = self.nats.client().await.unwrap();
        client.publish("tasks.created", create(id).into()).await.unwrap();
        client.flush().await.unwrap();
    }

    /// Starts a producer in the cluster that creates the tasks `{prefix}-0` and so on.
    async fn producer(&self, prefix: &str, per_second: u32) -> Producer {
        let url = "nats://nats:4222";
        Producer::start(&self.namespace, url, None, prefix, per_second).await.unwrap()
    }

    async fn landed(&self, id: &str, patience: Duration) -> Duration {
        within(patience, async || self.kv.task(id).await.map(drop)).await.unwrap()
    }

    async fn patch_pipeline(&self, patch: &Value) {
        let pipelines = self.namespace.api::<TaskPipeline>();
        pipelines.patch("tasks", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn pods(&self, wanted: usize) -> Vec<Pod> {
        eventually(SOON, async || ready(&self.namespace, PROCESSORS, wanted).await).await.unwrap()
    }

    async fn replicas(&self) -> anyhow::Result<i32> {
        let deployment = self.namespace.api::<Deployment>().get("tasks-processor").await?;
        Ok(deployment.spec.and_then(|spec| spec.replicas).unwrap_or_default())
    }

    /// Checks that the number of replicas is this, and stays for some reconciles.
    async fn keeps_replicas(&self, wanted: i32) {
        eventually(SOON, async || {
            let is = self.replicas().await?;
            ensure!(is == wanted, "{is} replicas");
            Ok(())
        })
        .await
        .unwrap();
        // A change triggers another reconcile.
        self.patch_pipeline(&json!({"metadata": {"annotations": {"e2e": format!("{:?}", Instant::now())}}}))
            .await;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(self.replicas().await.unwrap(), wanted);
        }
    }

    async fn scale_deployment(&self, replicas: i32) {
        let deployments = self.namespace.api::<Deployment>();
        let scale = json!({"spec": {"replicas": replicas}});
        deployments
            .patch_scale("tasks-processor", &PatchParams::default(), &Patch::Merge(&scale))
            .await
            .unwrap();
    }

    /// Reads a metric of each replica.
    async fn metrics(&self, wanted: usize, name: &str) -> Vec<f64> {
        let mut values = Vec::new();
        for pod in self.pods(wanted).await {
            let forward = Forward::to(self.namespace.api(), &pod.name_any(), 3001).await.unwrap();
            let text = reqwest::get(format!("http://{}/metrics", forward.address))
                .await
                .unwrap()
                .text()
                .await
                .unwrap();
            values.push(sum(&text, name));
        }
        values
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_and_its_secret_get_ready_within_30_s_and_an_event_lands_in_kv() {
    let bench = Bench::start("ready").await;
    let applied = Instant::now();
    kv_secret(&bench.namespace, "kv", "token-1").await.unwrap();
    bench.namespace.apply::<TaskPipeline>(minimal(&json!({}))).await.unwrap();
    within(SOON, async || condition(&bench.namespace, "Ready", "True").await.map(drop)).await.unwrap();
    let took = applied.elapsed();
    bench.publish("first").await;
    let landing = bench.landed("first", SOON).await;
    println!("Ready {took:?} after it was applied; an event landed after {landing:?}");
    assert!(took <= Duration::from_secs(30), "{took:?}");
    for kind in
        ["NatsConnected", "KvReachable", "CaughtUp", "RoomLeft", "DeadLettersEmpty", "SettingsAccepted"]
    {
        eventually(SOON, async || condition(&bench.namespace, kind, "True").await).await.unwrap();
    }
    assert_eq!(bench.replicas().await.unwrap(), 2, "the default is 2 replicas");

    // Deleting the pipeline removes everything that belongs to it, and does not touch the data in NATS.
    let pipelines = bench.namespace.api::<TaskPipeline>();
    pipelines.delete("tasks", &DeleteParams::background()).await.unwrap();
    eventually(SOON, async || {
        let namespace = &bench.namespace;
        let left = namespace.api::<Deployment>().get_opt("tasks-processor").await?.is_some()
            || namespace.api::<ServiceAccount>().get_opt("tasks-processor").await?.is_some()
            || namespace.api::<Role>().get_opt("tasks-processor").await?.is_some()
            || namespace.api::<Service>().get_opt("tasks-processor").await?.is_some();
        ensure!(!left, "some objects of the pipeline still exist");
        Ok(())
    })
    .await
    .unwrap();
    let streams = bench.nats.monitor("jsz").await.unwrap()["streams"].as_u64().unwrap();
    println!("deleted: only {streams} streams in NATS are left");
    assert!(streams >= 2, "the stream and the ledger are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_the_deployment_sticks_scaling_the_pipeline_wins_and_unsetting_it_leaves_the_count() {
    let bench = Bench::with_pipeline("scale", &json!({})).await;
    bench.keeps_replicas(2).await;
    bench.scale_deployment(5).await;
    bench.keeps_replicas(5).await;
    let operators = ListParams::default().labels(OperatorPods::LABEL);
    for pod in bench.namespace.api::<Pod>().list(&operators).await.unwrap() {
        bench.namespace.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    }
    eventually(SOON, async || ready(&bench.namespace, OperatorPods::LABEL, 1).await).await.unwrap();
    bench.keeps_replicas(5).await;

    bench.patch_pipeline(&json!({"spec": {"replicas": 4}})).await;
    bench.keeps_replicas(4).await;
    let scale = json!({"spec": {"replicas": 3}});
    let pipelines = bench.namespace.api::<TaskPipeline>();
    pipelines.patch_scale("tasks", &PatchParams::default(), &Patch::Merge(&scale)).await.unwrap();
    bench.keeps_replicas(3).await;
    bench.scale_deployment(5).await;
    bench.keeps_replicas(3).await;

    bench.patch_pipeline(&json!({"spec": {"replicas": null}})).await;
    bench.keeps_replicas(3).await;
    bench.scale_deployment(1).await;
    bench.keeps_replicas(1).await;
    bench.patch_pipeline(&json!({"spec": {"suspend": true}})).await;
    bench.keeps_replicas(0).await;
    println!(
        "2 at first, 5 by the Deployment, 4 and 3 by the pipeline, 3 when unset, 1 by the Deployment, 0 suspended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_core_every_replica_is_a_member_of_the_queue_group() {
    let more = json!({"replicas": 3, "delivery": {"mode": "Core"}});
    let bench = Bench::with_pipeline("core", &more).await;
    bench.pods(3).await;
    let page = "subsz?subs=1&test=tasks.created";
    let members = eventually(SOON, async || {
        let subscriptions = bench.nats.monitor(page).await?;
        let all = subscriptions["subscriptions_list"].as_array().cloned().unwrap_or_default();
        let members = all.iter().filter(|it| it["qgroup"] == "tasks-processor").count();
        ensure!(members == 3, "{members} members: {subscriptions}");
        Ok(members)
    })
    .await
    .unwrap();
    bench.publish("core-1").await;
    bench.landed("core-1", SOON).await;
    println!("{members} members of the queue group");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_durable_each_of_five_replicas_handles_a_tenth_and_scaling_down_under_load_loses_nothing() {
    let bench = Bench::with_pipeline("share", &json!({"replicas": 5})).await;
    bench.pods(5).await;
    let producer = bench.producer("share", 200).await;
    producer.reaches(2_000).await.unwrap();
    let handled = bench.metrics(5, "taskpipeline_events_stored_total").await;
    let all: f64 = handled.iter().sum();
    println!("events handled by each of five replicas: {handled:?}");
    assert!(handled.iter().all(|handled| *handled >= all / 10.0), "{handled:?}");

    bench.patch_pipeline(&json!({"spec": {"replicas": 1}})).await;
    bench.pods(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stored = producer.stop().await.unwrap();
    bench.kv.has_all("share", stored, SOON).await.unwrap();
    println!("{stored} events stored while five replicas became one; all {stored} are in KV");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_of_the_delays_reaches_an_attempt_that_waits_for_a_minute_within_3_s() {
    let bench = Bench::with_pipeline("retune", &json!({"retry": {"delays": ["60s"]}})).await;
    bench.kv.inject(&Rule::new(Fault::status(500)).on(Scope::Writes).named("down")).await.unwrap();
    bench.publish("waits").await;
    let failures =
        async || Ok::<_, anyhow::Error>(bench.kv.seen().await?["faults"]["down"].as_u64().unwrap_or(0));
    eventually(SOON, async || {
        ensure!(failures().await? > 0, "no attempt yet");
        Ok(())
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = failures().await.unwrap();
    assert_eq!(before, 1, "the second attempt waits for a minute");
    let started = |pods: Vec<Pod>| -> Vec<_> {
        pods.into_iter().map(|pod| (pod.name_any(), pod.status.unwrap().start_time)).collect()
    };
    let pods = started(bench.pods(2).await);

    bench.patch_pipeline(&json!({"spec": {"retry": {"delays": ["1s"]}}})).await;
    let took = within(SOON, async || {
        ensure!(failures().await? > before, "no second attempt yet");
        Ok(())
    })
    .await
    .unwrap();
    println!("the attempt that waited for 60 s came {took:?} after the patch");
    assert!(took <= Duration::from_secs(3), "{took:?}");
    bench.kv.mend().await.unwrap();
    bench.landed("waits", SOON).await;
    assert_eq!(started(bench.pods(2).await), pods, "pods were restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_rolls_the_pods_and_loses_nothing_and_a_missing_secret_is_named_until_it_is_back() {
    let bench = Bench::with_pipeline("rotate", &json!({})).await;
    let producer = bench.producer("rotate", 100).await;
    producer.reaches(1).await.unwrap();
    let before: Vec<_> = bench.pods(2).await.iter().map(ResourceExt::name_any).collect();
    // Both tokens are accepted while one replaces the other.
    bench.kv.let_in(&["token-1", "token-2"]).await.unwrap();
    kv_secret(&bench.namespace, "kv", "token-2").await.unwrap();
    let deployments = bench.namespace.api::<Deployment>();
    let least_available = AtomicI32::new(i32::MAX);
    // The operator checks the Secret every minute.
    let took = within(Duration::from_secs(150), async || {
        let status = deployments.get("tasks-processor").await?.status.unwrap_or_default();
        least_available.fetch_min(status.available_replicas.unwrap_or(0), Ordering::SeqCst);
        ready(&bench.namespace, PROCESSORS, 2).await?;
        // A replica that drains still writes, with the old token.
        let pods = present(&bench.namespace, PROCESSORS).await?;
        let old: Vec<_> = pods.iter().map(ResourceExt::name_any).filter(|pod| before.contains(pod)).collect();
        ensure!(old.is_empty(), "old pods still exist: {}", old.join(", "));
        Ok(())
    })
    .await
    .unwrap();
    bench.kv.let_in(&["token-2"]).await.unwrap();
    let by_then = producer.stored().await.unwrap();
    producer.reaches(by_then + 201).await.unwrap();
    let stored = producer.stop().await.unwrap();
    bench.kv.has_all("rotate", stored, SOON).await.unwrap();
    let refused = bench.kv.answers(Some(401)).await.unwrap();
    let least_available = least_available.into_inner();
    println!(
        "all pods were new {took:?} after the Secret had changed, {least_available} of 2 available at the least; {stored} events \
         stored meanwhile, {} of them after the old token was revoked, all in KV; {refused} requests refused",
        stored - by_then
    );
    assert!(stored > by_then + 200 && refused == 0 && least_available >= 1);

    let secrets = bench.namespace.api::<Secret>();

    secrets.delete("kv", &DeleteParams::default()).await.unwrap();
    bench.patch_pipeline(&json!({"metadata": {"annotations": {"e2e": "look"}}})).await;
    let message =
        eventually(Duration::from_secs(90), async || condition(&bench.namespace, "Degraded", "True").await)
            .await
            .unwrap();
    assert!(message.contains("the Secret kv"), "{message}");
    let events = bench.namespace.api::<Event>();
    eventually(SOON, async || {
        let all = events.list(&ListParams::default()).await?;
        ensure!(
            all.iter().any(|event| event.reason.as_deref() == Some("SecretMissing")),
            "no Event reports it"
        );
        Ok(())
    })
    .await
    .unwrap();
    kv_secret(&bench.namespace, "kv", "token-2").await.unwrap();
    eventually(Duration::from_secs(120), async || condition(&bench.namespace, "Ready", "True").await)
        .await
        .unwrap();
    println!("while it was missing: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_edit_a_pipeline_cannot_have_it_send_what_he_may_not_read_to_a_host_of_his() {
    let namespace = Namespace::new("steal").await.unwrap();
    let (nats, kv, thief, operator) = tokio::join!(
        NatsPod::start(&namespace, Some(("tasks", "secret-password"))),
        SimulatorPod::start(&namespace, "token-1"),
        SimulatorPod::start_named(&namespace, "thief", "anything"),
        OperatorPods::start(&namespace, 1),
    );
    operator.unwrap();
    let (nats, kv, thief) = (nats.unwrap(), kv.unwrap(), thief.unwrap());
    kv_secret(&namespace, "kv", "token-1").await.unwrap();
    let auth = json!({"user": "tasks", "password": "secret-password", "hosts": "nats"});
    namespace.apply::<Secret>(json!({"metadata": {"name": "nats-auth"}, "stringData": auth})).await.unwrap();
    let more = json!({"nats": {"authSecretRef": {"name": "nats-auth"}}});
    namespace.apply::<TaskPipeline>(minimal(&more)).await.unwrap();
    eventually(SOON, async || condition(&namespace, "Ready", "True").await).await.unwrap();
    let before: Vec<_> = eventually(SOON, async || ready(&namespace, PROCESSORS, 2).await).await.unwrap();
    let before: Vec<_> = before.iter().map(ResourceExt::name_any).collect();

    let may = json!([{"apiGroups": ["taskpipeline.dev"], "resources": ["taskpipelines"], "verbs": ["*"]}]);
    let eve = namespace.user("eve", may).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(eve.clone(), &namespace.name);
    let denied = secrets.get("nats-auth").await.expect_err("she must not read Secrets").to_string();
    assert!(denied.contains("forbidden"), "{denied}");
    let pipelines: Api<TaskPipeline> = Api::namespaced(eve, &namespace.name);
    let edit = json!({"spec": {"nats": {"url": "nats://thief:8788"}}});
    pipelines.patch("tasks", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    let message = eventually(SOON, async || condition(&namespace, "Degraded", "True").await).await.unwrap();
    assert!(message.contains("may not be sent to thief"), "{message}");
    // The spec has no place for KV's address, nor for an environment variable with it.
    for edit in [
        json!({"spec": {"kv": {"baseUrl": "http://thief:8788"}}}),
        json!({"spec": {"processor": {"env": {"CF_API_BASE_URL": "http://thief:8788"}}}}),
        json!({"spec": {"processor": {"command": ["/bin/sh"]}}}),
    ] {
        let tried = pipelines.patch("tasks", &PatchParams::default(), &Patch::Merge(&edit)).await;
        let kept = tried.map(|pipeline| serde_json::to_string(&pipeline.spec).unwrap());
        assert!(kept.is_err() || !kept.unwrap().contains("thief:8788\"}"), "{edit}");
    }
    // A Secret of her own does not help either.
    let mut own =
        minimal(&json!({"nats": {"url": "nats://thief:8788", "authSecretRef": {"name": "nats-auth"}}}));
    own["metadata"]["name"] = "own".into();
    let own: TaskPipeline = serde_json::from_value(own).unwrap();
    pipelines.create(&PostParams::default(), &own).await.unwrap();
    eventually(SOON, async || {
        let conditions = pipelines.get("own").await?.status.unwrap_or_default().conditions;
        ensure!(conditions.iter().any(|it| it.type_ == "Degraded" && it.status == "True"), "{conditions:?}");
        Ok(())
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(namespace.api::<Deployment>().get_opt("own-processor").await.unwrap().is_none());
    let pods = ready(&namespace, PROCESSORS, 2).await.unwrap();
    assert_eq!(
        pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
        before,
        "the old pods keep running"
    );
    assert_eq!(thief.answers(None).await.unwrap(), 0, "the thief received a request");

    let edit = json!({"spec": {"nats": {"url": "nats://nats:4222"}}});
    pipelines.patch("tasks", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    eventually(SOON, async || condition(&namespace, "Degraded", "False").await).await.unwrap();
    let client = nats.client().await.unwrap();
    client.publish("tasks.created", create("honest").into()).await.unwrap();
    client.flush().await.unwrap();
    within(SOON, async || kv.task("honest").await.map(drop)).await.unwrap();
    println!("refused: {message}; not readable: {denied}; nothing was sent to the thief");
}
