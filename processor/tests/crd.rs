//! The operator as a process, before the CRD is installed. The test has its own API server.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use taskpipeline_testkit::{Process, eventually, free_port, http, program};
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(20);

/// Accepts Leases, and knows TaskPipelines once their CRD is installed, and nothing else.
fn answer(method: &Method, path: &str, body: &[u8], installed: bool) -> Response {
    if path.contains("/leases")
        && *method != Method::GET
        && let Ok(mut lease) = serde_json::from_slice::<Value>(body)
    {
        lease["metadata"]["resourceVersion"] = "1".into();
        return axum::Json(lease).into_response();
    }
    if installed && path.ends_with("/taskpipelines") {
        let list = json!({
            "apiVersion": "taskpipeline.dev/v1alpha1", "kind": "TaskPipelineList",
            "metadata": {"resourceVersion": "1"}, "items": [],
        });
        return axum::Json(list).into_response();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": "the server could not find the requested resource",
    });
    (StatusCode::NOT_FOUND, axum::Json(status)).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_its_crd_says_so_and_goes_on_by_itself_once_it_is_there() {
    let installed = Arc::new(AtomicBool::new(false));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api_server = listener.local_addr().unwrap();
    let knows = Arc::clone(&installed);
    let routes = Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| async move {
        answer(&method, uri.path(), &body, knows.load(Ordering::SeqCst))
    });
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: own, cluster: {{server: \"http://{api_server}\"}}}}]\n\
         users: [{{name: own, user: {{}}}}]\ncontexts: [{{name: own, context: {{cluster: own, user: own}}}}]\n\
         current-context: own\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let port = free_port().unwrap();
    let mut command = Command::new(program("TASKPIPELINE_BIN", &["taskpipeline"]).unwrap());
    command.args(["operator", "--image", "taskpipeline:1", "--namespace", "shop", "--host", "127.0.0.1"]);
    command
        .env_clear()
        .env("KUBECONFIG", &kubeconfig)
        .env("PORT", port.to_string())
        .env("LOG_FORMAT", "text");
    let operator = Process::spawn("taskpipeline operator", &mut command).unwrap();
    let get = async |path: &str| {
        let response = http().get(format!("http://127.0.0.1:{port}{path}")).send().await?;
        anyhow::Ok((response.status().as_u16(), response.text().await?))
    };

    let (status, said) = eventually(SOON, || async {
        let answer = get("/readyz").await?;
        ensure!(answer.1.contains("CRD"), "{answer:?}");
        Ok(answer)
    })
    .await
    .unwrap();
    assert_eq!(status, 503, "{said}");
    assert!(said.contains("taskpipeline crd | kubectl apply"), "{said}");
    assert_eq!(get("/livez").await.unwrap().0, 200, "it is alive while it waits");
    assert!(operator.lines().iter().any(|line| line.contains("is not installed")), "{}", operator.tail());

    installed.store(true, Ordering::SeqCst);
    eventually(SOON, || async {
        let (status, said) = get("/readyz").await?;
        ensure!(status == 200, "{status} {said}");
        Ok(())
    })
    .await
    .unwrap();
    println!("not ready: {said}; ready once it was there");
}
