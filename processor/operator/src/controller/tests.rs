//! Tests of the objects and the status for pipelines as users write them, in YAML.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::build::{Image, Objects, build};
use super::covers::difference;
use super::dereference::{Found, References, SecretFacts};
use super::invalid::Invalid;
use super::policy::Policy;
use super::status::{OperatorStatus, Outcome, is_said, status, unknown};
use super::validate::{Validated, validate};
use crate::api::{TaskPipeline, TaskPipelineStatus};

fn pipeline(yaml: &str) -> TaskPipeline {
    serde_saphyr::from_str(yaml).unwrap()
}

fn minimal() -> TaskPipeline {
    pipeline(include_str!("../../../tests/pipelines/minimal.yaml"))
}

fn full() -> TaskPipeline {
    pipeline(include_str!("../../../tests/pipelines/full.yaml"))
}

fn secret(name: &str, version: &str, keys: &[&str], hosts: &[&str]) -> Found {
    Found::There(SecretFacts {
        name: name.to_owned(),
        uid: "6f".to_owned(),
        resource_version: version.to_owned(),
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        pipelines: None,
        claimed_by: None,
    })
}

fn references(version: &str) -> References {
    let hosts = ["n1.example.org", "n2.example.org"];
    References {
        kv: secret("cloudflare-kv", version, &["CF_ACCOUNT_ID", "CF_NAMESPACE_ID", "CF_API_TOKEN"], &[]),
        nats_auth: Some(secret("tasks-nats-auth", version, &["creds", "ca.crt"], &hosts)),
        nats_ca: None,
    }
}

fn validated(pipeline: &TaskPipeline) -> Validated {
    let mut found = references("1");
    if pipeline.spec.nats.auth_secret_ref.is_none() {
        found.nats_auth = None;
    }
    validate(pipeline, &found, &Policy::open()).unwrap()
}

fn image() -> Image {
    Image { name: "taskpipeline:1".to_owned(), pull_policy: None, pull_secrets: vec!["registry".to_owned()] }
}

fn objects(pipeline: &TaskPipeline) -> Objects {
    build(pipeline, &validated(pipeline), &image())
}

fn pod(deployment: &Deployment) -> PodSpec {
    deployment.spec.clone().unwrap().template.spec.unwrap()
}

fn env(container: &Container) -> Value {
    json!(container.env)
}

#[test]
fn pods_fit_restricted_pod_security_and_have_one_container_of_ours() {
    for pipeline in [minimal(), full()] {
        let pod = pod(&objects(&pipeline).deployment);
        let pod = serde_json::to_value(pod).unwrap();
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        let container = &pod["containers"][0];
        assert_eq!(container["image"], "taskpipeline:1");
        assert_eq!(container["args"], json!(["run", "--resource", "tasks"]));
        assert_eq!(container["command"], Value::Null);
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(pod["serviceAccountName"], "tasks-processor");
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            assert_eq!(container[probe]["httpGet"]["port"], "http", "{probe}");
        }
    }
}

#[test]
fn a_pod_may_take_longer_to_end_than_its_drain() {
    assert_eq!(pod(&objects(&minimal()).deployment).termination_grace_period_seconds, Some(35));
    assert_eq!(pod(&objects(&full()).deployment).termination_grace_period_seconds, Some(70));
}

#[test]
fn what_is_said_of_pods_is_in_them_and_replaces_nothing_of_ours() {
    let deployment = objects(&full()).deployment;
    let template = deployment.spec.clone().unwrap().template.metadata.unwrap();
    let labels = template.labels.unwrap();
    assert_eq!(labels["team"], "shop");
    assert_eq!(labels["app.kubernetes.io/name"], "taskpipeline", "ours stays");
    assert_eq!(template.annotations.unwrap()["example.org/owner"], "shop");
    let pod = pod(&deployment);
    assert_eq!(pod.node_selector.unwrap()["disk"], "ssd");
    assert_eq!(pod.priority_class_name.as_deref(), Some("shop.high"));
    assert_eq!(pod.image_pull_secrets.unwrap()[0].name, "registry");
    let env = env(&pod.containers[0]);
    let value = |name: &str| env.as_array().unwrap().iter().find(|it| it["name"] == name).cloned();
    assert_eq!(value("RUST_LOG").unwrap()["value"], "debug");
    assert_eq!(value("NATS_URL").unwrap()["value"], "tls://n1.example.org:4222,tls://n2.example.org");
    assert_eq!(value("STREAM_MAX_AGE").unwrap()["value"], "24h");
    assert_eq!(value("NATS_CREDS").unwrap()["value"], "/etc/taskpipeline/nats-auth/creds");
    let token = &value("CF_API_TOKEN").unwrap()["valueFrom"]["secretKeyRef"];
    assert_eq!((&token["name"], &token["key"]), (&json!("cloudflare-kv"), &json!("CF_API_TOKEN")));
}

#[test]
fn the_kubelet_expands_nothing_of_what_a_pipeline_says() {
    let mut pipeline = minimal();
    pipeline.spec.processor.env.insert("RUST_LOG".to_owned(), "$(CF_API_TOKEN) $$(X) $".to_owned());
    let env = env(&pod(&objects(&pipeline).deployment).containers[0]);
    let variable = env.as_array().unwrap().iter().find(|it| it["name"] == "RUST_LOG").unwrap();
    assert_eq!(variable["value"], "$$(CF_API_TOKEN) $$$$(X) $$", "two of them make one");
}

#[test]
fn a_role_is_for_the_pipelines_own_resource_and_nothing_else() {
    let rules = json!(objects(&minimal()).role.rules);
    for rule in rules.as_array().unwrap() {
        assert_eq!(rule["resourceNames"], json!(["tasks"]));
        assert_eq!(rule["apiGroups"], json!(["taskpipeline.dev"]));
    }
}

#[test]
fn a_changed_secret_rolls_the_pods_and_a_live_setting_does_not() {
    let template = |pipeline: &TaskPipeline, version: &str| {
        let mut found = references(version);
        found.nats_auth = None;
        let validated = validate(pipeline, &found, &Policy::open()).unwrap();
        build(pipeline, &validated, &image()).deployment.spec.unwrap().template
    };
    let before = template(&minimal(), "1");
    assert_eq!(template(&minimal(), "1"), before);
    assert_ne!(template(&minimal(), "2"), before, "rotated");
    let mut tuned = minimal();
    tuned.spec.retry.max_attempts = 9;
    tuned.spec.kv.batch.max_keys = 7;
    tuned.spec.kv.request_budget.requests = 3;
    tuned.spec.kv.request_timeout = "1s".parse().unwrap();
    tuned.spec.replicas = Some(7);
    assert_eq!(template(&tuned, "1"), before, "taken over by running replicas");
    let mut moved = minimal();
    moved.spec.nats.url = "nats://elsewhere:4222".to_owned();
    assert_ne!(template(&moved, "1"), before);
    let mut urgent = minimal();
    urgent.spec.processor.priority_class_name = Some("high".to_owned());
    assert_ne!(template(&urgent, "1"), before);
}

#[test]
fn everything_belongs_to_the_pipeline_and_leaves_the_replica_count_alone() {
    let objects = objects(&full());
    for metadata in [
        &objects.service_account.metadata,
        &objects.role.metadata,
        &objects.role_binding.metadata,
        &objects.service.metadata,
        &objects.disruption_budget.metadata,
        &objects.deployment.metadata,
    ] {
        let owner = &metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.uid.as_str(), owner.controller), ("7c1b", Some(true)));
        assert_eq!(metadata.namespace.as_deref(), Some("shop"));
    }
    assert_eq!(objects.deployment.spec.unwrap().replicas, None);
}

#[test]
fn what_the_api_server_makes_of_an_object_is_no_drift() {
    let wanted = serde_json::to_value(objects(&minimal()).deployment).unwrap();
    let mut live = wanted.clone();
    live["metadata"]["resourceVersion"] = json!("12");
    live["spec"]["replicas"] = json!(5);
    live["spec"]["progressDeadlineSeconds"] = json!(600);
    live["spec"]["template"]["spec"]["dnsPolicy"] = json!("ClusterFirst");
    live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    assert_eq!(difference(&live, &wanted), None);
    live["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    let place = difference(&live, &wanted);
    assert_eq!(place.as_deref(), Some("spec.template.spec.containers[0].image"));
}

/// A Deployment with counts of replicas: present, of the newest template, and ready.
fn deployment(wanted: i32, there: i32, updated: i32, ready: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "tasks-processor", "generation": 2},
        "spec": {"replicas": wanted, "selector": {}, "template": {}},
        "status": {"observedGeneration": 2, "replicas": there, "updatedReplicas": updated, "readyReplicas": ready},
    }))
    .unwrap()
}

fn at(second: i64) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
}

/// The conditions in short: `Ready=True(Reason)`.
fn said(status: &OperatorStatus) -> Vec<String> {
    let text =
        |condition: &Condition| format!("{}={}({})", condition.type_, condition.status, condition.reason);
    status.conditions.iter().map(text).collect()
}

#[test]
fn the_conditions_follow_the_deployment() {
    let of = |deployment: Deployment| said(&status(&minimal(), &Outcome::Applied(&deployment), &at(1)));
    assert_eq!(
        of(deployment(2, 2, 2, 2)),
        ["Ready=True(ReplicasReady)", "Progressing=False(Settled)", "Degraded=False(AsExpected)"]
    );
    assert_eq!(
        of(deployment(2, 2, 2, 1)),
        ["Ready=False(ReplicasNotReady)", "Progressing=True(RollingOut)", "Degraded=False(AsExpected)"]
    );
    assert_eq!(
        of(deployment(2, 3, 1, 2))[..2],
        ["Ready=True(ReplicasReady)", "Progressing=True(RollingOut)"]
    );
    assert_eq!(of(deployment(0, 0, 0, 0))[0], "Ready=False(ScaledToZero)");
    let mut suspended = minimal();
    suspended.spec.suspend = true;
    let outcome = deployment(0, 0, 0, 0);
    assert_eq!(said(&status(&suspended, &Outcome::Applied(&outcome), &at(1)))[0], "Ready=False(Suspended)");
}

#[test]
fn what_has_to_be_mended_is_named_while_replicas_run_on() {
    let invalid =
        Invalid { reason: "SecretMissing", message: "the Secret cloudflare-kv does not exist".to_owned() };
    let running = deployment(2, 2, 2, 2);
    let status = status(&minimal(), &Outcome::Invalid(&invalid, Some(&running)), &at(1));
    assert_eq!(said(&status)[0], "Ready=False(SecretMissing)");
    assert_eq!(said(&status)[2], "Degraded=True(SecretMissing)");
    assert!(status.conditions[2].message.contains("cloudflare-kv"));
    assert_eq!((status.ready.as_str(), status.ready_replicas), ("2/2", 2));
}

#[test]
fn a_steady_state_says_nothing_new_and_a_condition_keeps_its_time() {
    let mut pipeline = minimal();
    let running = deployment(2, 2, 2, 2);
    let first = status(&pipeline, &Outcome::Applied(&running), &at(1));
    assert!(!is_said(&pipeline, &first));
    let kept: TaskPipelineStatus = serde_json::from_value(json!(first)).unwrap();
    pipeline.status = Some(kept);
    let second = status(&pipeline, &Outcome::Applied(&running), &at(99));
    assert_eq!(second, first);
    assert!(is_said(&pipeline, &second));
    let turned = status(&pipeline, &Outcome::Applied(&deployment(2, 2, 2, 1)), &at(100));
    assert_eq!(turned.conditions[0].last_transition_time, at(100));
    assert_eq!(turned.conditions[2].last_transition_time, at(1));
}

#[test]
fn while_no_replica_is_ready_nobody_knows_what_a_replica_would_say_and_that_is_said_once() {
    let mut pipeline = minimal();
    assert_eq!(unknown(&pipeline, 1, &at(1)), None);
    let conditions = unknown(&pipeline, 0, &at(1)).unwrap();
    assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
    pipeline.status = Some(TaskPipelineStatus { conditions, ..TaskPipelineStatus::default() });
    assert_eq!(unknown(&pipeline, 0, &at(2)), None);
}

/// The part of a manifest that these tests read.
#[derive(serde::Deserialize)]
#[serde(tag = "kind")]
enum Manifest {
    TaskPipeline(Value),
    Secret(Value),
    #[serde(other)]
    Other,
}

/// A Secret with these keys, as the operator sees it. The chart of the bundled NATS creates the logins.
fn example_secret(manifests: &[Manifest], name: &str) -> Found {
    let secrets =
        manifests.iter().filter_map(|it| if let Manifest::Secret(it) = it { Some(it) } else { None });
    let Some(data) = secrets.map(|it| (&it["metadata"]["name"], &it["stringData"])).find(|it| it.0 == name)
    else {
        assert_eq!(name, "tasks-nats-processor", "no such Secret in the example");
        return secret(name, "1", &["user", "password", "inboxPrefix"], &["tasks-nats"]);
    };
    let data = data.1.as_object().unwrap();
    let keys: Vec<_> = data.keys().map(String::as_str).collect();
    for (key, value) in data.iter().filter(|(key, _)| *key != "hosts") {
        assert_eq!(value, "REPLACE-ME", "{key} of {name}");
    }
    let hosts = data.get("hosts").and_then(Value::as_str).unwrap_or_default();
    secret(name, "1", &keys, &hosts.split(',').collect::<Vec<_>>())
}

#[test]
fn every_example_can_be_run_once_its_placeholders_are_replaced() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/examples");
    let mut run = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let (path, name) = entry.map(|it| (it.path(), it.file_name().into_string().unwrap())).unwrap();
        if name.starts_with("values-") {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let manifests: Vec<Manifest> = serde_saphyr::from_multiple(&text).unwrap();
        for manifest in &manifests {
            let Manifest::TaskPipeline(manifest) = manifest else { continue };
            let spec = &manifest["spec"];
            let pipeline: TaskPipeline = serde_json::from_value(json!({
                "apiVersion": "taskpipeline.dev/v1alpha1", "kind": "TaskPipeline",
                "metadata": manifest["metadata"], "spec": spec,
            }))
            .unwrap();
            pipeline.validate_cel().unwrap();
            let auth = spec["nats"]["authSecretRef"]["name"].as_str().unwrap();
            let kv = example_secret(&manifests, spec["kv"]["secretRef"]["name"].as_str().unwrap());
            let nats_auth = Some(example_secret(&manifests, auth));
            let found = References { kv, nats_auth, nats_ca: None };
            validate(&pipeline, &found, &Policy::open()).unwrap();
            run.push(name.clone());
        }
    }
    run.sort();
    assert_eq!(run, ["core.yaml", "durable-three-nodes.yaml", "external-nats-tls.yaml", "minimal.yaml"]);
}

#[test]
fn room_that_is_said_is_in_the_environment_and_no_other() {
    let set = |room: Value| {
        let mut pipeline = minimal();
        pipeline.spec.delivery.room = Some(serde_json::from_value(room).unwrap());
        let env = env(&pod(&objects(&pipeline).deployment).containers[0]);
        let is_room = |it: &&Value| it["name"].as_str().unwrap().ends_with("_MAX_BYTES");
        let rooms = env.as_array().unwrap().iter().filter(is_room);
        rooms
            .map(|it| format!("{}={}", it["name"].as_str().unwrap(), it["value"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(set(json!({})), Vec::<String>::new());
    assert_eq!(
        set(json!({"events": "8Gi", "deadLetters": "1024Mi"})),
        ["STREAM_MAX_BYTES=8Gi", "DEAD_LETTERS_MAX_BYTES=1Gi"]
    );
}
