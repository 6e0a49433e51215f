//! The JSON for programs, and its cost in KV operations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use serde_json::{Value, json};
use support::{Answer, ScriptedReader, counted, counted_and_cached, edge, get, many, store, task};
use taskpipeline_contract::{Status, Task, TaskMetadata};
use taskpipeline_edge::{ListedKey, MemoryReader, router};

fn ids(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    body["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

fn listed(task: &Task) -> ListedKey {
    let metadata = serde_json::to_string(&TaskMetadata::from(task)).unwrap();
    ListedKey { name: format!("tasks:{}", task.id), metadata: Some(metadata) }
}

#[tokio::test]
async fn a_task_is_answered_as_it_is_stored() {
    let answer = get(&edge(&[task("task-1")]), "/api/tasks/task-1").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        answer.json(),
        json!({
            "id": "task-1",
            "title": "My First Task",
            "description": "This is a test task",
            "status": "pending",
            "createdAt": "2026-11-22T08:00:00.123Z",
            "updatedAt": "2026-11-22T09:30:05.000Z",
        })
    );
}

#[tokio::test]
async fn the_list_has_whole_tasks_in_the_order_of_their_keys() {
    let answer = get(&edge(&[task("b"), task("a")]), "/api/tasks").await;
    assert_eq!(
        answer.json(),
        json!({
            "tasks": [serde_json::to_value(task("a")).unwrap(), serde_json::to_value(task("b")).unwrap()],
            "cursor": null,
            "skipped": [],
        })
    );
}

#[tokio::test]
async fn an_empty_store_gives_an_empty_list() {
    let answer = get(&edge(&[]), "/api/tasks").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json(), json!({"tasks": [], "cursor": null, "skipped": []}));
}

#[tokio::test]
async fn a_page_has_100_tasks_without_a_limit() {
    let edge = router(many(150, |_| Status::Pending));
    assert_eq!(ids(&get(&edge, "/api/tasks").await).len(), 100);
    assert_eq!(ids(&get(&edge, "/api/tasks?limit=1").await), ["task-0000"]);
    assert_eq!(ids(&get(&edge, "/api/tasks?limit=1000").await).len(), 150);
}

async fn walk(edge: &axum::Router, query: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let mut uri = format!("/api/tasks?{query}");
    loop {
        let answer = get(edge, &uri).await;
        assert_eq!(answer.status, StatusCode::OK, "{uri}");
        seen.extend(ids(&answer));
        match answer.json()["cursor"].as_str() {
            Some(cursor) => uri = format!("/api/tasks?{query}&cursor={cursor}"),
            None => return seen,
        }
    }
}

#[tokio::test]
async fn following_the_cursor_lists_every_matching_task_once_with_any_filter_and_limit() {
    let edge = router(many(100, |n| if n % 7 == 0 { Status::Completed } else { Status::Pending }));
    let all: Vec<usize> = (0..100).collect();
    for limit in [1, 3, 10, 99, 100, 1000] {
        for (filter, wanted) in [
            ("", all.clone()),
            ("&status=completed", all.iter().copied().filter(|n| n % 7 == 0).collect()),
            ("&status=pending", all.iter().copied().filter(|n| n % 7 != 0).collect()),
            ("&status=cancelled", Vec::new()),
        ] {
            let seen = walk(&edge, &format!("limit={limit}{filter}")).await;
            let wanted: Vec<String> = wanted.iter().map(|n| format!("task-{n:04}")).collect();
            assert_eq!(seen, wanted, "limit {limit}, filter {filter:?}");
        }
    }
}

#[tokio::test]
async fn a_small_page_costs_one_list_call_if_half_of_the_tasks_pass_the_filter() {
    let (edge, counts) = counted(many(100, |n| if n % 2 == 0 { Status::Completed } else { Status::Pending }));
    let answer = get(&edge, "/api/tasks?status=completed&limit=10").await;
    assert_eq!(ids(&answer).len(), 10);
    assert_eq!(ids(&answer).last().unwrap(), "task-0018");
    // Values for the next page are not read.
    assert_eq!((counts.seen(), counts.listed_keys.load(Ordering::SeqCst)), ((1, 0, 1), 100));
}

#[tokio::test]
async fn fifty_requests_without_a_match_cost_250_list_calls() {
    let (edge, counts) = counted(many(2_000, |_| Status::Pending));
    for _ in 0..50 {
        assert_eq!(get(&edge, "/?status=cancelled&limit=1").await.status, StatusCode::OK);
    }
    let (lists, gets, bulk) = counts.seen();
    println!("50 requests: {lists} list calls of {} keys", counts.listed_keys.load(Ordering::SeqCst) / lists);
    assert_eq!((lists, gets, bulk), (250, 0, 0));
}

#[tokio::test]
async fn similar_requests_share_list_calls_and_show_the_same() {
    let tasks = || many(2_000, |n| if n % 90 == 0 { Status::Cancelled } else { Status::Pending });
    let ((plain, _), (cached, counts)) = (counted(tasks()), counted_and_cached(tasks()));
    let mut requests = 0;
    for _ in 0..10 {
        for query in
            ["", "?status=cancelled&limit=1", "?limit=7&status=cancelled&other=x", "?status=completed"]
        {
            for path in ["/", "/api/tasks"] {
                let uri = format!("{path}{query}");
                let (one, other) = (get(&plain, &uri).await, get(&cached, &uri).await);
                assert_eq!((one.status, &one.body), (other.status, &other.body), "{uri}");
                requests += 1;
            }
        }
    }
    let (lists, ..) = counts.seen();
    println!("{requests} requests of 8 kinds: {lists} list calls");
    assert_eq!(lists, 5);
}

#[tokio::test]
async fn a_search_with_few_matches_stops_after_5_list_calls_with_a_cursor() {
    let last = 1_000;
    let (edge, counts) =
        counted(many(last + 1, |n| if n == last { Status::Cancelled } else { Status::Pending }));
    let answer = get(&edge, "/api/tasks?status=cancelled&limit=10").await;
    assert_eq!(counts.seen(), (5, 0, 0));
    assert_eq!(ids(&answer).len(), 0);
    assert!(answer.json()["cursor"].is_string());
    assert_eq!(walk(&edge, "status=cancelled&limit=10").await, ["task-1000"]);

    let page = get(&edge, "/?status=cancelled&limit=10").await;
    assert_eq!(page.texts(".empty h2"), ["No cancelled tasks on this page"]);
    assert!(page.link(".pages a[rel=next]").is_some());
}

#[tokio::test]
async fn empty_pages_of_the_store_are_skipped() {
    let [a, b] = [task("a"), task("b")];
    let values: HashMap<String, String> =
        [&a, &b].map(|task| (format!("tasks:{}", task.id), serde_json::to_string(task).unwrap())).into();
    let pages = vec![vec![], vec![listed(&a)], vec![], vec![listed(&b)]];
    let answer = get(&router(ScriptedReader { pages, values }), "/api/tasks").await;
    assert_eq!(ids(&answer), ["a", "b"]);
    assert_eq!(answer.json()["cursor"], Value::Null);
}

#[tokio::test]
async fn only_empty_pages_of_the_store_give_an_empty_page_with_a_cursor() {
    let reader = || ScriptedReader { pages: vec![vec![]; 25], values: HashMap::new() };
    let answer = get(&router(reader()), "/api/tasks").await;
    assert_eq!(answer.json(), json!({"tasks": [], "cursor": "5", "skipped": []}));
    let page = get(&router(reader()), "/").await;
    assert_eq!(page.link(".pages a[rel=next]").as_deref(), Some("/?cursor=5"));
    assert_eq!(page.texts(".empty h2"), ["No tasks on this page"]);
}

#[tokio::test]
async fn a_listed_key_without_a_value_is_omitted() {
    let [gone, there] = [task("gone"), task("there")];
    let values = HashMap::from([("tasks:there".to_owned(), serde_json::to_string(&there).unwrap())]);
    let pages = vec![vec![listed(&gone), listed(&there)]];
    let answer = get(&router(ScriptedReader { pages, values }), "/api/tasks").await;
    assert_eq!(ids(&answer), ["there"]);
    assert_eq!(answer.json()["skipped"], json!([]));
}

#[tokio::test]
async fn a_task_that_changed_after_the_list_call_is_filtered_by_its_new_status() {
    let now = Task { status: Status::Completed, ..task("t") };
    let values = HashMap::from([("tasks:t".to_owned(), serde_json::to_string(&now).unwrap())]);
    let pages = vec![vec![listed(&task("t"))]];
    let edge = router(ScriptedReader { pages, values });
    assert!(ids(&get(&edge, "/api/tasks?status=pending").await).is_empty());
}

#[tokio::test]
async fn a_value_that_is_not_a_task_is_omitted_and_its_key_is_named() {
    let store = store(&[task("ok")]);
    store.put_text("tasks:bad", "[]", None);
    store.put_text("tasks:worse", "", Some("{}".to_owned()));
    store.put_text("tasks:..", "{}", None);
    let edge = router(store);
    let answer = get(&edge, "/api/tasks").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(ids(&answer), ["ok"]);
    assert_eq!(answer.json()["skipped"], json!(["tasks:..", "tasks:bad", "tasks:worse"]));
    let one = get(&edge, "/api/tasks/bad").await;
    assert_eq!(one.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(one.json()["error"]["code"], "task_unreadable");
}

#[tokio::test]
async fn keys_outside_the_prefix_are_not_tasks() {
    let store = MemoryReader::new();
    for key in ["task-1", "tasks", "tasksx:1", "other:task-1"] {
        store.put_text(key, serde_json::to_string(&task("task-1")).unwrap(), None);
    }
    let edge = router(store);
    assert!(ids(&get(&edge, "/api/tasks").await).is_empty());
    assert_eq!(get(&edge, "/api/tasks/task-1").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_list_page_costs_one_list_call_and_no_values_for_50_and_for_1000_tasks() {
    for (uri, shown) in [("/", 50), ("/?limit=1000", 1000)] {
        let (edge, counts) = counted(many(1000, |_| Status::Pending));
        let answer = get(&edge, uri).await;
        assert_eq!(answer.texts(".task").len(), shown);
        assert_eq!(counts.seen(), (1, 0, 0), "{uri}");
    }
}

#[tokio::test]
async fn a_thousand_whole_tasks_cost_one_list_call_and_ten_bulk_gets() {
    let (edge, counts) = counted(many(1000, |_| Status::Pending));
    let answer = get(&edge, "/api/tasks?limit=1000").await;
    assert_eq!(ids(&answer).len(), 1000);
    assert_eq!(counts.seen(), (1, 0, 10));
    assert_eq!(counts.largest_bulk.load(Ordering::SeqCst), 100);
}

#[tokio::test]
async fn the_list_page_reads_a_thousand_keys_without_metadata_in_ten_bulk_gets() {
    let store = MemoryReader::new();
    for n in 0..1000 {
        let id = format!("old-{n:04}");
        store.put_text(format!("tasks:{id}"), serde_json::to_string(&task(&id)).unwrap(), None);
    }
    let (edge, counts) = counted(store);
    assert_eq!(get(&edge, "/?limit=1000").await.texts(".task").len(), 1000);
    assert_eq!(counts.seen(), (1, 0, 10));
}

#[tokio::test]
async fn one_task_costs_one_get() {
    let (edge, counts) = counted(store(&[task("t")]));
    get(&edge, "/tasks/t").await;
    assert_eq!(counts.seen(), (0, 1, 0));
    get(&edge, "/api/tasks/t").await;
    assert_eq!(counts.seen(), (0, 2, 0));
}

#[tokio::test]
async fn a_filter_does_not_read_values_that_the_metadata_excludes() {
    let (edge, counts) = counted(many(100, |n| if n < 3 { Status::Completed } else { Status::Pending }));
    assert_eq!(ids(&get(&edge, "/api/tasks?status=completed").await).len(), 3);
    assert_eq!(counts.seen().2, 1);
    assert_eq!(counts.largest_bulk.load(Ordering::SeqCst), 3);
}
