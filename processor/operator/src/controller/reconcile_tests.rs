//! Tests of reconciles against an API server in memory, which stores objects and fails on request. `cargo xtask e2e` tests with a
//! real API server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};

use super::build::Image;
use super::metrics::OperatorMetrics;
use super::names::{FIELD_MANAGER, REPLICAS_MANAGER};
use super::policy::Policy;
use super::reconcile::{Context, after_failure, back_off, reconcile};
use crate::api::TaskPipeline;

const PIPELINE: &str = "/apis/taskpipeline.dev/v1alpha1/namespaces/shop/taskpipelines/tasks";
const SECRET: &str = "/api/v1/namespaces/shop/secrets/cloudflare-kv";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/tasks-processor";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles/tasks-processor";

/// An API server in memory, which fails at the requests that a test names.
#[derive(Default)]
struct Server {
    objects: Mutex<HashMap<String, Value>>,
    /// All requests, including reads: `PATCH /path`.
    asked: Mutex<Vec<String>>,
    failing: Mutex<Vec<(Method, &'static str, u16)>>,
    /// The object that replaces another before its next patch.
    exchanged: Mutex<HashMap<String, Value>>,
    /// The number of changes of managed fields that fail with a conflict.
    conflicts: Mutex<u32>,
}

impl Server {
    fn answer(&self, method: &Method, uri: &Uri, body: &[u8]) -> Response {
        let path = uri.path();
        self.asked.lock().unwrap().push(format!("{method} {path}"));
        let failing = self.failing.lock().unwrap();
        if let Some((.., code)) = failing.iter().find(|(at, on, _)| at == method && *on == path) {
            return refusal(*code);
        }
        let mut objects = self.objects.lock().unwrap();
        let (base, is_status) = path.strip_suffix("/status").map_or((path, false), |base| (base, true));
        if *method == Method::GET {
            return objects
                .get(base)
                .map_or_else(|| refusal(404), |object| axum::Json(object).into_response());
        }
        let said: Value = serde_json::from_slice(body).unwrap();
        if *method == Method::POST {
            if let Some(name) = said["metadata"]["name"].as_str() {
                let mut made = said.clone();
                made["metadata"]["managedFields"] =
                    json!([{"manager": FIELD_MANAGER, "operation": "Update"}]);
                made["metadata"]["uid"] = json!(format!("of-{name}"));
                objects.insert(format!("{path}/{name}"), made.clone());
                return (StatusCode::CREATED, axum::Json(made)).into_response();
            }
            return (StatusCode::CREATED, axum::Json(said)).into_response();
        }
        if said["metadata"]["managedFields"].is_array() {
            let mut conflicts = self.conflicts.lock().unwrap();
            if *conflicts > 0 {
                *conflicts -= 1;
                return refusal(409);
            }
        }
        if let Some(theirs) = self.exchanged.lock().unwrap().remove(base) {
            objects.insert(base.to_owned(), theirs);
        }
        let object = objects.entry(base.to_owned()).or_insert_with(|| json!({}));
        let (said_uid, uid) = (&said["metadata"]["uid"], &object["metadata"]["uid"]);
        if said_uid.is_string() && said_uid != uid {
            return refusal(409);
        }
        merge(object, &said);
        if !is_status && uri.query().is_some_and(|query| query.contains(REPLICAS_MANAGER)) {
            object["metadata"]["managedFields"] = json!([
                {"manager": REPLICAS_MANAGER, "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
            ]);
        }
        axum::Json(&*object).into_response()
    }

    fn put(&self, path: &str, object: Value) {
        self.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    fn get(&self, path: &str) -> Value {
        self.objects.lock().unwrap().get(path).cloned().unwrap_or_default()
    }

    fn fail(&self, method: Method, path: &'static str, code: u16) {
        self.failing.lock().unwrap().push((method, path, code));
    }

    fn stop_failing(&self) {
        self.failing.lock().unwrap().clear();
    }

    /// The writes since the last call.
    fn writes(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.into_iter().filter(|asked| !asked.starts_with("GET")).collect()
    }

    /// The status and the reason of a condition.
    fn condition(&self, kind: &str) -> String {
        let conditions = self.get(PIPELINE)["status"]["conditions"].clone();
        let found = conditions.as_array().into_iter().flatten().find(|condition| condition["type"] == kind);
        found.map_or_else(String::new, |found| {
            format!("{} {}", found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
        })
    }
}

fn refusal(code: u16) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "message": format!("injected {code}"), "reason": if code == 404 { "NotFound" } else { "InternalError" },
    });
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

/// Merges as server-side apply does, as far as these tests need: conditions by their type.
fn merge(object: &mut Value, said: &Value) {
    let Value::Object(fields) = said else {
        *object = said.clone();
        return;
    };
    for (name, value) in fields {
        if name == "conditions" {
            let mut all = object[name].as_array().cloned().unwrap_or_default();
            let is_said =
                |old: &Value| value.as_array().unwrap().iter().any(|new| new["type"] == old["type"]);
            all.retain(|old| !is_said(old));
            all.extend(value.as_array().unwrap().iter().cloned());
            object[name] = Value::Array(all);
        } else {
            merge(&mut object[name], value);
        }
    }
}

struct Bench {
    server: Arc<Server>,
    context: Arc<Context>,
}

impl Bench {
    async fn start() -> Self {
        let server = Arc::new(Server::default());
        let answering = Arc::clone(&server);
        let router = Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| {
            let server = Arc::clone(&answering);
            async move { server.answer(&method, &uri, &body) }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let yaml = include_str!("../../../tests/pipelines/minimal.yaml");
        let pipeline: TaskPipeline = serde_saphyr::from_str(yaml).unwrap();
        server.put(PIPELINE, serde_json::to_value(pipeline).unwrap());
        let bench = Self {
            context: Arc::new(Context {
                client: client.clone(),
                image: Image {
                    name: "taskpipeline:1".to_owned(),
                    pull_policy: None,
                    pull_secrets: Vec::new(),
                },
                policy: Policy::open(),
                pipelines: kube::runtime::reflector::store().0,
                recorder: Recorder::new(client, Reporter { controller: "test".to_owned(), instance: None }),
                metrics: OperatorMetrics::new().unwrap(),
                failures: Mutex::default(),
            }),
            server,
        };
        bench.secret("1");
        bench
    }

    fn secret(&self, version: &str) {
        // Only the existence of the objects matters.
        let data = json!({"CF_ACCOUNT_ID": "YQ==", "CF_NAMESPACE_ID": "YQ==", "CF_API_TOKEN": "YQ=="});
        let metadata = json!({"name": "cloudflare-kv", "uid": "6f", "resourceVersion": version});
        self.server
            .put(SECRET, json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}));
    }

    fn pipeline(&self) -> Arc<TaskPipeline> {
        Arc::new(serde_json::from_value(self.server.get(PIPELINE)).unwrap())
    }

    async fn reconcile(&self) -> Result<(), String> {
        let done = reconcile(self.pipeline(), Arc::clone(&self.context)).await;
        done.map(drop).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn a_second_pass_writes_nothing_and_drift_is_put_right_alone() {
    let bench = Bench::start().await;
    bench.reconcile().await.unwrap();
    let first = bench.server.writes();
    assert!(first.iter().any(|write| write.ends_with(DEPLOYMENT)), "{first:?}");
    assert_eq!(bench.server.get(DEPLOYMENT)["spec"]["replicas"], 2);
    bench.reconcile().await.unwrap();
    assert_eq!(bench.server.writes(), Vec::<String>::new(), "after {} writes of the first pass", first.len());

    let mut edited = bench.server.get(DEPLOYMENT);
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = json!("somebody-elses:1");
    bench.server.put(DEPLOYMENT, edited);
    bench.reconcile().await.unwrap();
    assert_eq!(bench.server.writes(), [format!("PATCH {DEPLOYMENT}")]);
    assert_eq!(
        bench.server.get(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]["image"],
        "taskpipeline:1"
    );
}

#[tokio::test]
async fn a_controller_that_writes_a_new_object_at_once_is_no_failure() {
    let bench = Bench::start().await;
    *bench.server.conflicts.lock().unwrap() = 3;
    bench.reconcile().await.unwrap();
    assert_eq!(*bench.server.conflicts.lock().unwrap(), 0, "nothing was in conflict");
    assert_eq!(bench.server.condition("Degraded"), "False AsExpected");
    let fields = bench.server.get(DEPLOYMENT)["metadata"]["managedFields"].clone();
    assert!(!fields.to_string().contains("Update"), "{fields}");
    assert_eq!(bench.server.get(DEPLOYMENT)["spec"]["replicas"], 2);
}

#[tokio::test]
async fn an_object_that_somebody_else_makes_at_the_same_moment_does_not_become_ours() {
    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/shop/deployments";
    let bench = Bench::start().await;
    // The object does not exist at the read, but exists at the create.
    bench.server.fail(Method::POST, DEPLOYMENTS, 409);
    bench.reconcile().await.unwrap_err();
    let writes = bench.server.writes();
    assert!(writes.contains(&format!("POST {DEPLOYMENTS}")), "{writes:?}");
    bench.server.stop_failing();
    let theirs = json!({"metadata": {"name": "tasks-processor", "namespace": "shop"}, "spec": {"replicas": 1,
        "selector": {}, "template": {}}});
    bench.server.put(DEPLOYMENT, theirs.clone());
    let error = bench.reconcile().await.unwrap_err();
    assert!(error.contains("belongs to another owner"), "{error}");
    assert_eq!(bench.server.get(DEPLOYMENT), theirs);
}

/// `e2e/cluster/tests/pipeline.rs` tests such an apply with a real API server.
#[tokio::test]
async fn an_object_that_was_exchanged_since_it_was_read_does_not_become_ours() {
    let bench = Bench::start().await;
    bench.reconcile().await.unwrap();
    let mut edited = bench.server.get(DEPLOYMENT);
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = json!("somebody-elses:1");
    bench.server.put(DEPLOYMENT, edited);
    let theirs = json!({"metadata": {"name": "tasks-processor", "namespace": "shop", "uid": "theirs"},
        "spec": {"replicas": 1, "selector": {}, "template": {}}});
    bench.server.exchanged.lock().unwrap().insert(DEPLOYMENT.to_owned(), theirs.clone());
    bench.reconcile().await.unwrap_err();
    assert!(bench.server.exchanged.lock().unwrap().is_empty(), "nothing was exchanged");
    assert_eq!(bench.server.get(DEPLOYMENT), theirs);
    let error = bench.reconcile().await.unwrap_err();
    assert!(error.contains("belongs to another owner"), "{error}");
}

#[tokio::test]
async fn what_is_taken_out_of_a_pipeline_is_taken_out_of_its_objects_once() {
    let bench = Bench::start().await;
    let with = |processor: Value| {
        let mut pipeline = bench.server.get(PIPELINE);
        pipeline["spec"]["processor"] = processor;
        bench.server.put(PIPELINE, pipeline);
    };
    with(json!({"priorityClassName": "high", "nodeSelector": {"disk": "ssd"}}));
    bench.reconcile().await.unwrap();
    bench.server.writes();
    with(json!({}));
    bench.reconcile().await.unwrap();
    assert_eq!(bench.server.writes(), [format!("PATCH {DEPLOYMENT}")]);
    bench.reconcile().await.unwrap();
    assert_eq!(bench.server.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_secret_is_named_in_a_condition_and_an_event_and_nothing_is_made_until_it_is_there() {
    let bench = Bench::start().await;
    bench.server.objects.lock().unwrap().remove(SECRET);
    bench.reconcile().await.unwrap();
    assert_eq!(bench.server.condition("Degraded"), "True SecretMissing");
    assert_eq!(bench.server.get(DEPLOYMENT), Value::Null);
    let writes = bench.server.writes();
    assert!(writes.iter().any(|write| write.starts_with("POST") && write.ends_with("/events")), "{writes:?}");
    bench.secret("1");
    bench.reconcile().await.unwrap();
    assert_eq!(bench.server.condition("Degraded"), "False AsExpected");
    assert_ne!(bench.server.get(DEPLOYMENT), Value::Null);
}

#[tokio::test]
async fn a_rotated_secret_changes_the_pods() {
    let bench = Bench::start().await;
    bench.reconcile().await.unwrap();
    let before = bench.server.get(DEPLOYMENT)["spec"]["template"].clone();
    bench.secret("2");
    bench.reconcile().await.unwrap();
    assert_ne!(bench.server.get(DEPLOYMENT)["spec"]["template"], before);
}

#[tokio::test]
async fn what_the_api_server_refuses_is_said_and_tried_again_with_back_off() {
    for (method, path, code) in
        [(Method::GET, SECRET, 500), (Method::PATCH, ROLE, 403), (Method::PATCH, DEPLOYMENT, 422)]
    {
        let bench = Bench::start().await;
        bench.server.fail(method.clone(), path, code);
        let error = bench.reconcile().await.unwrap_err();
        assert!(error.contains(&format!("injected {code}")), "{error}");
        let name = path.rsplit('/').next().unwrap();
        assert!(error.contains(name), "{error}");
        assert_eq!(bench.server.condition("Degraded"), "True ApplyFailed", "{method} {path}");
        bench.server.stop_failing();
        bench.reconcile().await.unwrap();
        assert_eq!(bench.server.condition("Degraded"), "False AsExpected");
    }
}

#[tokio::test]
async fn failures_in_a_row_are_counted_for_the_back_off_until_one_pass_succeeds() {
    let bench = Bench::start().await;
    bench.server.fail(Method::GET, SECRET, 500);
    for failed in 1..=3 {
        let error = reconcile(bench.pipeline(), Arc::clone(&bench.context)).await.unwrap_err();
        let _ = after_failure(bench.pipeline(), &error, Arc::clone(&bench.context));
        assert_eq!(bench.context.failures.lock().unwrap()["shop/tasks"], failed);
    }
    bench.server.stop_failing();
    bench.reconcile().await.unwrap();
    assert!(bench.context.failures.lock().unwrap().is_empty());
}

#[test]
fn the_back_off_doubles_up_to_a_minute_and_a_part_of_it_is_by_chance() {
    let seconds = |failed, dice| back_off(failed, dice).as_secs_f64();
    assert!((seconds(1, 1.0) - 1.0).abs() < 1e-6 && (seconds(1, 0.0) - 0.5).abs() < 1e-6);
    assert!((seconds(4, 1.0) - 8.0).abs() < 1e-6);
    assert!((seconds(9, 1.0) - 60.0).abs() < 1e-6 && (seconds(1_000, 0.0) - 30.0).abs() < 1e-6);
}

#[tokio::test]
async fn an_object_of_that_name_that_is_somebody_elses_is_left_alone() {
    let bench = Bench::start().await;
    let theirs = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "tasks-processor"},
        "spec": {"selector": {}, "template": {}}});
    bench.server.put(DEPLOYMENT, theirs.clone());
    let error = bench.reconcile().await.unwrap_err();
    assert!(error.contains("belongs to another owner"), "{error}");
    assert_eq!(bench.server.get(DEPLOYMENT), theirs);
}

#[tokio::test]
async fn without_a_right_to_write_the_status_the_pipeline_runs_all_the_same() {
    let bench = Bench::start().await;
    bench.server.fail(
        Method::PATCH,
        "/apis/taskpipeline.dev/v1alpha1/namespaces/shop/taskpipelines/tasks/status",
        403,
    );
    let error = bench.reconcile().await.unwrap_err();
    assert!(error.contains("cannot write the status"), "{error}");
    assert_ne!(bench.server.get(DEPLOYMENT), Value::Null);
}
