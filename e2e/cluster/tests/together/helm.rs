//! `helm install`, as a new user and as an administrator run it.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use taskpipeline_e2e_cluster::{
    Chart, Helm, Namespace, PROCESSORS, Release, condition, create, eventually, forward, log_in, present,
    ready, within,
};
use taskpipeline_operator::api::TaskPipeline;
use taskpipeline_simulator::{Fault, Rule, Scope};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn helm_install_of_the_demo_gets_ready_and_a_producers_event_shows_on_the_page_and_uninstall_leaves_nothing()
 {
    let namespace = Namespace::new("demo").await.unwrap();
    let helm = Helm::new(&namespace, "demo").unwrap();
    let began = Instant::now();
    let notes = helm.install(&Chart::current(), &["demo.enabled=true"]).await.unwrap();
    let installed = began.elapsed();
    let nats = forward(&namespace, "nats-server", 4222).await.unwrap();
    let pages = forward(&namespace, "demo", 8080).await.unwrap();
    eventually(SOON, async || condition(&namespace, "Ready", "True").await).await.unwrap();
    let producer = jetstream::new(log_in(&namespace, &nats, "producer").await.unwrap());
    let ack = producer.publish("tasks.created", create("first").into()).await.unwrap();
    ack.await.unwrap();
    let page = eventually(SOON, async || {
        let page = reqwest::get(format!("http://{}/", pages.address)).await?.text().await?;
        ensure!(page.contains("Task first"), "the task is not on the page: {page}");
        Ok(page)
    })
    .await
    .unwrap();
    let shown = began.elapsed();
    let log = helm.test().await.unwrap();
    assert!(log.contains("the pipeline works"), "{log}");
    println!(
        "installed after {installed:.1?}, the first task on the page after {shown:.1?} ({} bytes)\n{notes}\n{log}",
        page.len()
    );
    assert!(notes.contains("port-forward service/demo-taskpipeline-demo"), "{notes}");
    assert!(shown < SOON, "{shown:?}");

    // Objects that the user creates belong to the user.
    let own = json!({"metadata": {"name": "own"}, "stringData": {"mine": "yes"}});
    namespace.apply::<Secret>(own).await.unwrap();
    helm.uninstall().await.unwrap();
    let expected = ["ConfigMap kube-root-ca.crt", "PersistentVolumeClaim data-demo-nats-0", "Secret own"];
    // The API server removes the objects of the TaskPipeline and of the operator in its own time.
    let left = eventually(SOON, async || {
        let mut left = Vec::new();
        left.extend(names::<ConfigMap>(&namespace).await?);
        left.extend(names::<Deployment>(&namespace).await?);
        left.extend(names::<Lease>(&namespace).await?);
        left.extend(names::<PersistentVolumeClaim>(&namespace).await?);
        left.extend(names::<Pod>(&namespace).await?);
        left.extend(names::<PodDisruptionBudget>(&namespace).await?);
        left.extend(names::<Role>(&namespace).await?);
        left.extend(names::<RoleBinding>(&namespace).await?);
        left.extend(names::<Secret>(&namespace).await?);
        left.extend(names::<Service>(&namespace).await?);
        left.extend(names::<ServiceAccount>(&namespace).await?);
        left.extend(names::<StatefulSet>(&namespace).await?);
        left.extend(names::<TaskPipeline>(&namespace).await?);
        left.retain(|name| name != "ServiceAccount default");
        ensure!(left == expected, "left behind: {left:?}");
        Ok(left)
    })
    .await
    .unwrap();
    println!("after helm uninstall: {left:?} and the CRD");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_nats_servers_is_refused_on_a_live_release_before_anything_changes() {
    let namespace = Namespace::new("resize").await.unwrap();
    let helm = Helm::new(&namespace, "demo").unwrap();
    let chart = Chart::current();
    helm.install(&chart, &["demo.enabled=true"]).await.unwrap();
    eventually(SOON, async || condition(&namespace, "Ready", "True").await).await.unwrap();
    let nats = forward(&namespace, "nats-server", 4222).await.unwrap();
    let producer = jetstream::new(log_in(&namespace, &nats, "producer").await.unwrap());
    producer.publish("tasks.created", create("kept").into()).await.unwrap().await.unwrap();
    let before = namespace.api::<StatefulSet>().get("demo-nats").await.unwrap();

    let three = ["demo.enabled=true", "nats.replicas=3"];
    let refused = helm.upgrade(&chart, &three).await.unwrap_err();
    let said = format!("{refused:#}");
    println!("{said}");
    for part in ["nats.replicas is 3", "demo-nats", "on 1", "Set nats.replicas=1"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let after = namespace.api::<StatefulSet>().get("demo-nats").await.unwrap();
    assert_eq!(
        after.metadata.resource_version, before.metadata.resource_version,
        "the StatefulSet was changed nevertheless"
    );
    // The stream still works, and Helm accepts the same number of servers.
    let ack = producer.publish("tasks.created", create("next").into()).await.unwrap().await.unwrap();
    assert!(ack.sequence >= 2, "the stream was created again: {ack:?}");
    helm.upgrade(&chart, &["demo.enabled=true"]).await.unwrap();

    // The volume outlives the release, and so does the reason.
    helm.uninstall().await.unwrap();
    let refused = helm.install(&chart, &three).await.unwrap_err();
    assert!(format!("{refused:#}").contains("Set nats.replicas=1"), "{refused:#}");
    assert!(namespace.api::<StatefulSet>().get_opt("demo-nats").await.unwrap().is_none());
}

async fn names<T>(namespace: &Namespace) -> anyhow::Result<Vec<String>>
where
    T: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<T> = namespace.api();
    let all = api.list(&ListParams::default()).await?;
    Ok(all.iter().map(|it| format!("{} {}", T::kind(&()), it.name_any())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn scaled_to_5_and_back_under_load_loses_nothing_and_a_patch_is_live_and_outlives_helm_upgrade() {
    let chart = Chart::current();
    let release = Release::install("day2", &chart, &[]).await.unwrap();
    let (namespace, kv) = (&release.namespace, &release.kv);
    let producer = release.producer(100).await.unwrap();
    producer.reaches(100).await.unwrap();
    let deployments = namespace.api::<Deployment>();
    for replicas in [5, 2] {
        let scale = json!({"spec": {"replicas": replicas}});
        let params = PatchParams::default();
        deployments.patch_scale("tasks-processor", &params, &Patch::Merge(&scale)).await.unwrap();
        let wanted = usize::try_from(replicas).unwrap();
        eventually(SOON, async || ready(namespace, PROCESSORS, wanted).await).await.unwrap();
        producer.reaches(producer.stored().await.unwrap() + 300).await.unwrap();
    }
    let stored = release.all_land(&producer).await.unwrap();
    println!("{stored} events stored while 2 replicas became 5 and 2 again, all in KV");

    // Like `kubectl patch`.
    let pipelines = namespace.api::<TaskPipeline>();
    let patch = async |delay: &str| {
        let delays = json!({"spec": {"retry": {"delays": [delay]}}});
        let by = PatchParams { field_manager: Some("kubectl-patch".to_owned()), ..PatchParams::default() };
        pipelines.patch("tasks", &by, &Patch::Merge(&delays)).await.unwrap();
    };
    patch("60s").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    kv.inject(&Rule::new(Fault::status(500)).on(Scope::Writes).named("down")).await.unwrap();
    let nats = forward(namespace, "nats-server", 4222).await.unwrap();
    let client = log_in(namespace, &nats, "producer").await.unwrap();
    client.publish("tasks.created", create("waits").into()).await.unwrap();
    client.flush().await.unwrap();
    let failed = async |wanted: u64| {
        let failed = kv.seen().await?["faults"]["down"].as_u64().unwrap_or(0);
        ensure!(failed == wanted, "{failed} failed");
        Ok(())
    };
    eventually(SOON, async || failed(1).await).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    failed(1).await.expect("the second attempt waits for a minute");
    patch("1s").await;
    let took = within(SOON, async || failed(2).await).await.unwrap();
    kv.mend().await.unwrap();
    within(SOON, async || kv.task("waits").await.map(drop)).await.unwrap();
    println!("the attempt that waited for 60 s came {took:?} after the patch");
    assert!(took < Duration::from_secs(3), "{took:?}");

    let values = ["pipeline.spec.kv.minWriteInterval=2s", "operator.logFormat=text"];
    release.helm.upgrade(&chart, &values).await.unwrap();
    eventually(SOON, async || condition(namespace, "Ready", "True").await).await.unwrap();
    let spec = serde_json::to_value(pipelines.get("tasks").await.unwrap().spec).unwrap();
    println!(
        "after helm upgrade: delays {}, minWriteInterval {}",
        spec["retry"]["delays"], spec["kv"]["minWriteInterval"]
    );
    assert_eq!((&spec["retry"]["delays"], &spec["kv"]["minWriteInterval"]), (&json!(["1s"]), &json!("2s")));
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_pod_deleted_once_and_ten_times_under_load_loses_no_stored_event() {
    let release = Release::install("nats", &Chart::current(), &[]).await.unwrap();
    let namespace = &release.namespace;
    let producer = release.producer(200).await.unwrap();
    producer.reaches(200).await.unwrap();
    let pods = namespace.api::<Pod>();
    let mut deleted = Vec::new();
    for round in 1..=11 {
        let before = pods.get("demo-nats-0").await.unwrap().uid().unwrap();
        // The last deletions have almost no grace. With 0, the next pod starts on the volume while the former pod
        // still writes there. Events that the former pod acknowledges then are lost (docs/operations.md, "One NATS
        // server or three").
        let grace = if round > 6 { 1 } else { 30 };
        let params = DeleteParams { grace_period_seconds: Some(grace), ..DeleteParams::default() };
        pods.delete("demo-nats-0", &params).await.unwrap();
        eventually(Duration::from_secs(90), async || {
            let pods = ready(namespace, "app.kubernetes.io/component=nats-server", 1).await?;
            ensure!(pods[0].uid().as_deref() != Some(&before), "the old pod still exists");
            Ok(())
        })
        .await
        .unwrap();
        deleted.push(before);
        producer.reaches(producer.stored().await.unwrap() + 100).await.unwrap();
        if round == 1 {
            println!("deleted once: {} events stored so far", producer.stored().await.unwrap());
        }
    }
    deleted.sort();
    deleted.dedup();
    assert_eq!(deleted.len(), 11, "the pod was not deleted each time");
    let stored = release.all_land(&producer).await.unwrap();
    println!("nats-server's pod deleted {} times: {stored} events stored, all in KV", deleted.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nats_servers_keep_what_is_stored_while_each_of_them_is_deleted() {
    let values =
        ["nats.replicas=3", "pipeline.spec.delivery.stream.replicas=3", "nats.resources.requests.cpu=20m"];
    let release = Release::install("three", &Chart::current(), &values).await.unwrap();
    let namespace = &release.namespace;
    let producer = release.producer(50).await.unwrap();
    producer.reaches(50).await.unwrap();
    let pods = namespace.api::<Pod>();
    for server in 0..3 {
        let name = format!("demo-nats-{server}");
        let before = pods.get(&name).await.unwrap().uid();
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        eventually(Duration::from_secs(90), async || {
            ready(namespace, "app.kubernetes.io/component=nats-server", 3).await?;
            ensure!(pods.get(&name).await?.uid() != before, "the old pod still exists");
            Ok(())
        })
        .await
        .unwrap();
        producer.reaches(producer.stored().await.unwrap() + 50).await.unwrap();
    }
    let stored = release.all_land(&producer).await.unwrap();
    println!("each of three servers deleted: {stored} events stored, all in KV");
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_logins_rotated_as_the_docs_say_lose_nothing_and_the_old_passwords_are_refused() {
    let chart = Chart::current();
    let release = Release::install("rotate", &chart, &[]).await.unwrap();
    let namespace = &release.namespace;
    let producer = release.producer(100).await.unwrap();
    producer.reaches(200).await.unwrap();
    let secrets = namespace.api::<Secret>();
    let logins = ["demo-nats-processor", "demo-nats-producer"];
    let passwords = async || {
        let mut found = Vec::new();
        for login in logins {
            found.push(secrets.get(login).await.unwrap().data.unwrap()["password"].0.clone());
        }
        found
    };
    let (old, replicas) = (passwords().await, uids(namespace).await.unwrap());
    // This login will soon be an old one.
    let stored = producer.stop().await.unwrap();
    let began = Instant::now();
    for login in logins {
        secrets.delete(login, &DeleteParams::default()).await.unwrap();
    }
    release.helm.upgrade(&chart, &[]).await.unwrap();
    namespace.api::<StatefulSet>().restart("demo-nats").await.unwrap();
    let new = passwords().await;
    assert!(old[0] != new[0] && old[1] != new[1], "the passwords are the old ones");
    // The operator checks Secrets every minute, and a replica that NATS refuses takes its grace to end.
    eventually(Duration::from_secs(180), async || {
        ready(namespace, PROCESSORS, 2).await?;
        let now = uids(namespace).await?;
        ensure!(now.iter().all(|uid| !replicas.contains(uid)), "old replicas still exist");
        condition(namespace, "NatsConnected", "True").await
    })
    .await
    .unwrap();
    let took = began.elapsed();

    let nats = forward(namespace, "nats-server", 4222).await.unwrap();
    for (user, password) in ["processor", "producer"].iter().zip(&old) {
        let password = String::from_utf8(password.clone()).unwrap();
        let options = async_nats::ConnectOptions::new().user_and_password((*user).to_owned(), password);
        let refused = options.connect(nats.address.to_string()).await.expect_err("an old password");
        assert!(refused.to_string().contains("authorization"), "{refused}");
    }
    let client = jetstream::new(log_in(namespace, &nats, "producer").await.unwrap());
    client.publish("tasks.created", create("after").into()).await.unwrap().await.unwrap();
    eventually(SOON, async || release.kv.task("after").await).await.unwrap();
    release.kv.has_all("load", stored, SOON).await.unwrap();
    println!(
        "both logins rotated in {took:.1?}: {stored} events stored before and one after, all in KV; old ones refused twice"
    );
}

/// The uids of the existing replicas.
async fn uids(namespace: &Namespace) -> anyhow::Result<Vec<String>> {
    Ok(present(namespace, PROCESSORS).await?.iter().filter_map(ResourceExt::uid).collect())
}
