//! Properties of every answer: errors, methods, headers, correlation ids.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use support::{FailingReader, SECRET_CAUSE, edge, get, request, send, store, task};
use taskpipeline_edge::router;

const CORRELATION: &str = "x-correlation-id";

fn with_a_task() -> Router {
    edge(&[task("task-1")])
}

fn stylesheet_and_icon(page: &support::Answer) -> [String; 2] {
    [page.link("link[rel=stylesheet]").unwrap(), page.link("link[rel=icon]").unwrap()]
}

fn failing(fails: fn(&mut FailingReader)) -> Router {
    let mut reader = FailingReader { store: store(&[task("task-1")]), ..FailingReader::default() };
    fails(&mut reader);
    router(reader)
}

#[tokio::test]
async fn a_missing_task_is_a_404_as_html_or_json() {
    let edge = with_a_task();
    let page = get(&edge, "/tasks/task-2").await;
    assert_eq!(page.status, StatusCode::NOT_FOUND);
    assert_eq!(page.texts("h1"), ["Task not found"]);
    let json = get(&edge, "/api/tasks/task-2").await;
    assert_eq!(json.status, StatusCode::NOT_FOUND);
    assert_eq!(json.json()["error"]["code"], "task_not_found");
}

#[tokio::test]
async fn any_other_path_is_a_404() {
    let edge = with_a_task();
    for path in
        ["/nowhere", "/tasks", "/tasks/", "/tasks/a/b", "/tasks/task-1/", "//", "/index.html", "/assets/x"]
    {
        let answer = get(&edge, path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(answer.texts(".trace code").contains(&"not_found".to_owned()), "{path}");
    }
    for path in ["/api", "/api/", "/api/tasks/", "/api/tasks/a/b", "/api/other"] {
        let answer = get(&edge, path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.json()["error"]["code"], "not_found", "{path}");
    }
}

#[tokio::test]
async fn any_other_method_is_a_405_with_the_allowed_methods() {
    let edge = with_a_task();
    let [stylesheet, _] = stylesheet_and_icon(&get(&edge, "/").await);
    for path in
        ["/", "/tasks/task-1", "/api/tasks", "/api/tasks/task-1", "/health", "/favicon.ico", &stylesheet]
    {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let answer = request(&edge, method.parse().unwrap(), path).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(answer.header("allow"), "GET, HEAD", "{method} {path}");
            assert!(answer.body.contains("method_not_allowed"), "{method} {path}");
            assert_eq!(answer.header("cache-control"), "no-store", "{method} {path}");
        }
    }
}

/// One path of each route, and one unknown path.
fn known_paths<'a>(stylesheet: &'a str, icon: &'a str) -> [&'a str; 9] {
    [
        "/",
        "/tasks/task-1",
        "/api/tasks",
        "/api/tasks/task-1",
        "/health",
        "/favicon.ico",
        stylesheet,
        icon,
        "/nowhere",
    ]
}

#[tokio::test]
async fn head_answers_as_get_does_but_without_a_body() {
    let edge = with_a_task();
    let [stylesheet, icon] = stylesheet_and_icon(&get(&edge, "/").await);
    let paths = [
        known_paths(&stylesheet, &icon).as_slice(),
        &["/tasks/task-2", "/api/tasks?limit=0", "/api/nowhere"],
    ]
    .concat();
    for path in paths {
        let request = |method| {
            Request::builder()
                .method(method)
                .uri(path)
                .header(CORRELATION, "same")
                .body(Body::empty())
                .unwrap()
        };
        let got = send(&edge, request(Method::GET)).await;
        let head = send(&edge, request(Method::HEAD)).await;
        assert_eq!(head.status, got.status, "{path}");
        assert_eq!(head.headers, got.headers, "{path}");
        assert_eq!(head.body, "", "{path}");
        assert!(!got.body.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn an_encoded_slash_is_part_of_the_id() {
    let edge = edge(&[task("a/b"), task("a%2Fb"), task("100%")]);
    for (path, id) in
        [("a%2Fb", "a/b"), ("a%2fb", "a/b"), ("a%252Fb", "a%2Fb"), ("100%25", "100%"), ("%61%2F%62", "a/b")]
    {
        let answer = get(&edge, &format!("/api/tasks/{path}")).await;
        assert_eq!(answer.json()["id"], id, "{path}");
        assert_eq!(get(&edge, &format!("/tasks/{path}")).await.texts("dd")[0], id, "{path}");
    }
}

#[tokio::test]
async fn a_plus_in_a_path_is_a_plus() {
    let edge = edge(&[task("a+b")]);
    assert_eq!(get(&edge, "/api/tasks/a+b").await.json()["id"], "a+b");
}

#[tokio::test]
async fn an_invalid_id_is_a_400() {
    let edge = with_a_task();
    let too_long = "x".repeat(257);
    for id in ["%", "a%2", "%zz", "100%", "%ff", "%C3%28", "%00", "a%0Ab", "%2E", "%2e%2E", too_long.as_str()]
    {
        let json = get(&edge, &format!("/api/tasks/{id}")).await;
        assert_eq!(json.status, StatusCode::BAD_REQUEST, "{id}");
        assert_eq!(json.faults(), ["id"], "{id}");
        let page = get(&edge, &format!("/tasks/{id}")).await;
        assert_eq!(page.status, StatusCode::BAD_REQUEST, "{id}");
        assert_eq!(page.texts(".error li code"), ["id"], "{id}");
    }
}

#[tokio::test]
async fn invalid_parameters_are_a_400_that_names_each_rule() {
    let edge = with_a_task();
    let cases: [(&str, &[&str]); 9] = [
        ("limit=0", &["limit"]),
        ("limit=1001", &["limit"]),
        ("limit=ten", &["limit"]),
        ("status=done", &["status"]),
        ("status=Pending", &["status"]),
        ("cursor=never-given", &["cursor"]),
        ("cursor=%F0%9F%98%80", &["cursor"]),
        ("limit=%zz&status=%ff", &["status", "limit"]),
        ("status=x&limit=x&cursor=%20", &["status", "limit", "cursor"]),
    ];
    for (query, faults) in cases {
        let json = get(&edge, &format!("/api/tasks?{query}")).await;
        assert_eq!(json.status, StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(json.json()["error"]["code"], "bad_request", "{query}");
        assert_eq!(json.faults(), faults, "{query}");
        let page = get(&edge, &format!("/?{query}")).await;
        assert_eq!(page.status, StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(page.texts(".error li code"), faults, "{query}");
    }
    let body = get(&edge, "/api/tasks?limit=0").await.json();
    assert_eq!(body["error"]["fields"][0]["problem"], "must be a whole number from 1 to 1000");
}

#[tokio::test]
async fn errors_do_not_repeat_the_request() {
    let edge = with_a_task();
    for uri in [
        "/zebra",
        "/tasks/zebra",
        "/tasks/zebra%00",
        "/api/zebra",
        "/api/tasks/zebra",
        "/?status=zebra",
        "/api/tasks?status=zebra&limit=zebra&cursor=zebra",
    ] {
        let answer = get(&edge, uri).await;
        assert!(answer.status.is_client_error(), "{uri}");
        assert!(!answer.body.contains("zebra"), "{uri}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_failing_store_is_a_503_without_its_cause() {
    let lists = || failing(|reader| reader.lists_fail = true);
    let gets = || failing(|reader| reader.gets_fail = true);
    let bulks = || failing(|reader| reader.bulks_fail = true);
    for (edge, path) in [
        (lists(), "/"),
        (lists(), "/api/tasks"),
        (bulks(), "/api/tasks"),
        (gets(), "/tasks/task-1"),
        (gets(), "/api/tasks/task-1"),
        (gets(), "/health"),
    ] {
        let answer = get(&edge, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(answer.body.contains("kv_unavailable"), "{path}");
        assert!(!answer.body.contains(SECRET_CAUSE), "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("retry-after"), "10", "{path}");
    }
    // The list page does not read values.
    assert_eq!(get(&bulks(), "/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn health_has_the_overall_status_the_status_of_kv_and_the_version() {
    let answer = get(&with_a_task(), "/health").await;
    assert_eq!(answer.status, StatusCode::OK);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        answer.json(),
        serde_json::json!({"status": "ok", "kv": {"status": "ok"}, "version": version})
    );
    assert_eq!(answer.header("cache-control"), "no-store");

    let answer = get(&failing(|reader| reader.gets_fail = true), "/health").await;
    let body = answer.json();
    assert_eq!((&body["status"], &body["kv"]["status"]), (&"unavailable".into(), &"unavailable".into()));
    assert_eq!(body["version"], version);
    assert_eq!(body["error"]["correlationId"], answer.header(CORRELATION));
}

#[tokio::test]
async fn every_answer_has_the_secure_headers() {
    let edge = with_a_task();
    let [stylesheet, icon] = stylesheet_and_icon(&get(&edge, "/").await);
    let expected = [
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("origin-agent-cluster", "?1"),
        ("referrer-policy", "no-referrer"),
        ("strict-transport-security", "max-age=15552000; includeSubDomains"),
        ("x-content-type-options", "nosniff"),
        ("x-dns-prefetch-control", "off"),
        ("x-download-options", "noopen"),
        ("x-frame-options", "SAMEORIGIN"),
        ("x-permitted-cross-domain-policies", "none"),
        ("x-xss-protection", "0"),
        (
            "content-security-policy",
            "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; \
             frame-ancestors 'none'",
        ),
    ];
    let gets =
        [known_paths(&stylesheet, &icon).as_slice(), &["/api/nowhere", "/tasks/%zz", "/api/tasks?limit=0"]]
            .concat();
    let mut answers = vec![request(&edge, Method::POST, "/").await];
    for path in gets {
        answers.push(get(&edge, path).await);
    }
    for answer in answers {
        for (name, value) in expected {
            assert_eq!(answer.header(name), value, "{}", answer.body);
        }
        assert!(answer.header("permissions-policy").contains("geolocation=()"));
        assert!(!answer.header("content-type").is_empty());
    }
}

#[tokio::test]
async fn shared_caches_may_store_only_assets() {
    let edge = with_a_task();
    let [stylesheet, icon] = stylesheet_and_icon(&get(&edge, "/").await);
    for path in ["/", "/tasks/task-1", "/api/tasks", "/api/tasks/task-1"] {
        assert_eq!(get(&edge, path).await.header("cache-control"), "private, no-cache", "{path}");
    }
    for path in ["/health", "/nowhere", "/tasks/none", "/?limit=0", "/assets/site-0.css"] {
        assert_eq!(get(&edge, path).await.header("cache-control"), "no-store", "{path}");
    }
    for (path, media_type) in [(&stylesheet, "text/css; charset=utf-8"), (&icon, "image/svg+xml")] {
        let answer = get(&edge, path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.header("cache-control"), "public, max-age=31536000, immutable", "{path}");
        assert_eq!(answer.header("content-type"), media_type, "{path}");
    }
    assert_eq!(get(&edge, "/favicon.ico").await.header("cache-control"), "public, max-age=86400");
}

async fn with_ids(edge: &Router, path: &str, ids: &[&str]) -> support::Answer {
    let mut request = Request::builder().uri(path);
    for id in ids {
        request = request.header(CORRELATION, id.as_bytes());
    }
    send(edge, request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_safe_correlation_id_is_in_the_header_and_in_errors_of_the_answer() {
    let edge = with_a_task();
    for path in ["/", "/tasks/task-1", "/api/tasks", "/health", "/nowhere", "/api/nowhere", "/tasks/%zz"] {
        let answer = with_ids(&edge, path, &["test-001.A_b="]).await;
        assert_eq!(answer.header(CORRELATION), "test-001.A_b=", "{path}");
    }
    let json = with_ids(&edge, "/api/nowhere", &["test-001"]).await.json();
    assert_eq!(json["error"]["correlationId"], "test-001");
    let page = with_ids(&edge, "/nowhere", &["test-001"]).await;
    assert_eq!(page.texts(".trace code"), ["not_found", "test-001"]);
}

#[tokio::test]
async fn an_unsafe_correlation_id_is_replaced_and_never_shown() {
    let edge = with_a_task();
    let too_long = "x".repeat(129);
    let cases: [&[&str]; 6] =
        [&[], &[""], &["<script>alert(1)</script>"], &["a b"], &[too_long.as_str()], &["one", "two"]];
    for ids in cases {
        let answer = with_ids(&edge, "/nowhere", ids).await;
        let id = answer.header(CORRELATION);
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'4'), "{ids:?} gave {id}");
        assert!(answer.body.contains(id), "{ids:?}");
        assert!(ids.iter().all(|sent| sent.is_empty() || !answer.body.contains(&format!(">{sent}<"))));
    }
}

#[tokio::test]
async fn answers_for_shared_caches_have_no_correlation_id() {
    let edge = with_a_task();
    let [stylesheet, icon] = stylesheet_and_icon(&get(&edge, "/").await);
    for path in [&stylesheet, &icon, "/favicon.ico"] {
        let answer = with_ids(&edge, path, &["test-001"]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(!answer.headers.contains_key(CORRELATION), "{path}");
    }
}
