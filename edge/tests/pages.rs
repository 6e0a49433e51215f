//! The pages for people: their texts, and that no task can break them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use axum::http::StatusCode;
use support::{Answer, edge, get, many, store, task};
use taskpipeline_contract::{Status, Task};
use taskpipeline_edge::router;

/// Titles and ids that break a page without escaping, encoding or isolation.
const HOSTILE: [&str; 12] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</title></textarea><svg/onload=alert(1)>",
    "a/b//c/../d",
    "100% %2F %zz %",
    "?status=x&limit=1#top",
    "😀 👩‍👩‍👧 ü 漢字",
    "\u{202e}gnp.evil\u{2066}\u{2069}\u{2069}\u{200f}",
    "{{ 7*7 }} {% raw %}",
    "  two  spaces and a + plus ",
    "&lt;b&gt; &amp;amp;",
];

fn hrefs(answer: &Answer) -> Vec<String> {
    answer.attributes(".task a", "href")
}

#[tokio::test]
async fn the_list_shows_title_id_status_and_time_of_each_task() {
    let done = Task { status: Status::InProgress, title: "Second".parse().unwrap(), ..task("task-2") };
    let answer = get(&edge(&[task("task-1"), done]), "/").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.texts(".task .what"), ["My First Task", "Second"]);
    assert_eq!(answer.texts(".task .which"), ["task-1", "task-2"]);
    assert_eq!(answer.texts(".task .badge"), ["Pending", "In progress"]);
    assert_eq!(answer.texts(".task time"), ["22 Nov 2026, 09:30 UTC"; 2]);
    assert_eq!(answer.attributes(".task time", "datetime"), ["2026-11-22T09:30:05.000Z"; 2]);
    assert_eq!(hrefs(&answer), ["/tasks/task-1", "/tasks/task-2"]);
    assert_eq!(answer.texts(".count"), ["2 tasks"]);
}

#[tokio::test]
async fn a_task_page_shows_every_field_and_links_the_list_and_the_json() {
    let answer = get(&edge(&[task("task-1")]), "/tasks/task-1").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.texts("h1"), ["My First Task"]);
    assert_eq!(answer.texts("title"), ["My First Task · TaskPipeline"]);
    assert_eq!(answer.texts(".description"), ["This is a test task"]);
    assert_eq!(answer.texts(".badge"), ["Pending"]);
    assert_eq!(
        answer.texts("dd"),
        ["task-1", "22 November 2026, 08:00:00 UTC", "22 November 2026, 09:30:05 UTC"]
    );
    assert_eq!(
        answer.attributes("time", "datetime"),
        ["2026-11-22T08:00:00.123Z", "2026-11-22T09:30:05.000Z"]
    );
    assert_eq!(answer.link(".back a").as_deref(), Some("/"));
    assert_eq!(answer.link(".raw a").as_deref(), Some("/api/tasks/task-1"));
}

#[tokio::test]
async fn every_status_has_its_own_text_and_shape() {
    for status in Status::ALL {
        let answer = get(&edge(&[Task { status, ..task("t") }]), "/tasks/t").await;
        let shape = answer.attributes(".badge use", "href");
        assert_eq!(shape, [format!("#{}", status.as_str())]);
        assert_eq!(answer.texts(&format!("symbol[id='{}']", status.as_str())).len(), 1);
        assert_eq!(answer.texts(".badge")[0].to_lowercase(), status.as_str().replace('_', " "));
    }
}

#[tokio::test]
async fn hostile_titles_are_shown_as_text() {
    for hostile in HOSTILE {
        let title = hostile.parse().unwrap();
        let description = hostile.parse().unwrap();
        let edge = edge(&[Task { title, description, ..task("t") }]);
        let list = get(&edge, "/").await;
        assert_eq!(list.texts(".what"), [hostile]);
        let page = get(&edge, "/tasks/t").await;
        assert_eq!(page.texts("h1 bdi"), [hostile]);
        assert_eq!(page.texts(".description"), [hostile]);
        assert_eq!(page.texts("title"), [format!("{hostile} · TaskPipeline")]);
        for answer in [list, page] {
            assert!(
                answer.texts("script, img, textarea, [onerror], [onload], [onmouseover], [style]").is_empty()
            );
        }
    }
}

#[tokio::test]
async fn hostile_ids_link_from_the_list_to_their_page_and_json() {
    let tasks: Vec<Task> =
        HOSTILE.into_iter().map(|id| Task { title: "T".parse().unwrap(), ..task(id) }).collect();
    let edge = edge(&tasks);
    let list = get(&edge, "/").await;
    let links = hrefs(&list);
    assert_eq!(links.len(), HOSTILE.len());
    assert!(list.texts("script, img, textarea, [onerror], [onload], [onmouseover]").is_empty());
    for (link, id) in links.iter().zip(list.texts(".which")) {
        assert!(HOSTILE.contains(&id.as_str()), "{id}");
        assert_eq!(link.matches('/').count(), 2, "{link}");
        let page = get(&edge, link).await;
        assert_eq!(
            (page.status, page.texts("dd").first().cloned()),
            (StatusCode::OK, Some(id.clone())),
            "{link}"
        );
        let json = get(&edge, &page.link(".raw a").unwrap()).await.json();
        assert_eq!(json["id"], id.as_str());
    }
}

#[tokio::test]
async fn texts_of_tasks_are_isolated_from_the_page_around_them() {
    let edge = edge(&[task("t")]);
    for (page, selectors) in
        [("/", [".what > a > bdi", ".which > code > bdi"]), ("/tasks/t", ["h1 > bdi", "dd > code > bdi"])]
    {
        let answer = get(&edge, page).await;
        for selector in selectors {
            assert_eq!(answer.texts(selector).len(), 1, "{page} {selector}");
        }
    }
    assert_eq!(get(&edge, "/tasks/t").await.attributes(".description", "dir"), ["auto"]);
}

#[tokio::test]
async fn a_description_keeps_its_line_breaks() {
    let description = "one\n\n  two\n";
    let edge = edge(&[Task { description: description.parse().unwrap(), ..task("t") }]);
    assert_eq!(get(&edge, "/tasks/t").await.texts(".description"), [description]);
}

#[tokio::test]
async fn a_task_without_a_description_says_so() {
    let edge = edge(&[Task { description: "".parse().unwrap(), ..task("t") }]);
    assert_eq!(get(&edge, "/tasks/t").await.texts(".description"), ["No description."]);
}

#[tokio::test]
async fn an_empty_store_shows_how_to_publish_the_first_event() {
    let answer = get(&edge(&[]), "/").await;
    assert_eq!(
        answer.texts(".empty pre code"),
        ["taskpipeline publish created --id task-1 --title \"My First Task\" \
          --description \"This is a test task\" --status pending"]
    );
}

#[tokio::test]
async fn an_empty_filter_names_its_status_and_links_all_tasks() {
    let answer = get(&edge(&[task("t")]), "/?status=completed").await;
    assert_eq!(answer.texts(".empty h2"), ["No completed tasks"]);
    assert_eq!(answer.texts(".empty a"), ["Show all tasks"]);
    assert_eq!(answer.link(".empty a").as_deref(), Some("/"));
    assert!(answer.texts("pre").is_empty());
}

#[tokio::test]
async fn the_filters_are_links_and_the_current_filter_is_marked() {
    let edge = router(many(4, |n| Status::ALL[n]));
    let all = get(&edge, "/").await;
    assert_eq!(all.texts(".filters a"), ["All", "Pending", "In progress", "Completed", "Cancelled"]);
    assert_eq!(all.texts(".filters a[aria-current=page]"), ["All"]);
    for (link, label) in all.attributes(".filters a", "href").iter().zip(all.texts(".filters a")).skip(1) {
        let filtered = get(&edge, link).await;
        assert_eq!(filtered.texts(".filters a[aria-current=page]"), std::slice::from_ref(&label));
        assert_eq!(filtered.texts(".task .badge"), [label]);
    }
}

#[tokio::test]
async fn next_page_links_show_every_task_once_and_each_page_links_the_first() {
    let edge = router(many(120, |_| Status::Pending));
    let mut link = "/".to_owned();
    let mut seen = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let answer = get(&edge, &link).await;
        let ids = answer.texts(".which");
        sizes.push(ids.len());
        seen.extend(ids);
        assert_eq!(answer.link(".pages a:not([rel])").as_deref(), (link != "/").then_some("/"));
        match answer.link(".pages a[rel=next]") {
            Some(next) => link = next,
            None => break,
        }
    }
    assert_eq!(sizes, [50, 50, 20]);
    assert_eq!(seen, (0..120).map(|n| format!("task-{n:04}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_next_page_keeps_filter_and_limit() {
    let edge = router(many(40, |n| Status::ALL[n % 2]));
    let first = get(&edge, "/?status=in_progress&limit=7").await;
    let next = get(&edge, &first.link(".pages a[rel=next]").unwrap()).await;
    assert_eq!(first.texts(".which").last().unwrap(), "task-0013");
    assert_eq!(next.texts(".which").first().unwrap(), "task-0015");
    assert_eq!(next.texts(".which").len(), 7);
    assert_eq!(next.texts(".filters a[aria-current]"), ["In progress"]);
    assert_eq!(next.link(".pages a:not([rel])").as_deref(), Some("/?status=in_progress&limit=7"));
}

#[tokio::test]
async fn a_task_without_usable_metadata_is_listed_like_any_other() {
    for metadata in [None, Some("null"), Some("{\"title\":1}"), Some("not json")] {
        let store = store(&[task("b")]);
        let value = serde_json::to_string(&task("a")).unwrap();
        store.put_text("tasks:a", value, metadata.map(str::to_owned));
        let edge = router(store);
        let answer = get(&edge, "/").await;
        assert_eq!(answer.texts(".which"), ["a", "b"]);
        assert_eq!(answer.texts(".what"), ["My First Task"; 2]);
        assert!(answer.texts(".notice").is_empty());
        assert_eq!(get(&edge, "/?status=completed").await.texts(".which").len(), 0);
        assert_eq!(get(&edge, "/?status=pending").await.texts(".which").len(), 2);
    }
}

#[tokio::test]
async fn a_value_that_is_not_a_task_is_omitted_with_a_notice() {
    let store = store(&[task("ok")]);
    store.put_text("tasks:<bad>", "{not json", None);
    store.put_text("tasks:", "{}", None);
    store.put_text("tasks:other", serde_json::to_string(&task("ok")).unwrap(), None);
    let answer = get(&router(store), "/").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.texts(".which"), ["ok"]);
    assert!(answer.texts(".notice p")[0].starts_with("3 entries are not shown."));
    assert_eq!(answer.texts(".notice li"), ["tasks:", "tasks:<bad>", "tasks:other"]);
}

#[tokio::test]
async fn a_value_that_is_not_this_task_is_a_503_on_its_page() {
    let store = store(&[]);
    store.put_text("tasks:bad", "{not json", None);
    store.put_text("tasks:moved", serde_json::to_string(&task("elsewhere")).unwrap(), None);
    let edge = router(store);
    for path in ["/tasks/bad", "/tasks/moved"] {
        let answer = get(&edge, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(answer.texts(".trace code").contains(&"task_unreadable".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn every_page_has_the_elements_for_assistive_technology() {
    let edge = edge(&[task("t")]);
    for path in ["/", "/?status=completed", "/tasks/t", "/nowhere"] {
        let answer = get(&edge, path).await;
        assert_eq!(answer.attributes("html", "lang"), ["en"], "{path}");
        assert_eq!(answer.texts("h1").len(), 1, "{path}");
        assert_eq!(answer.texts("main").len(), 1, "{path}");
        assert_eq!(answer.link("a.skip").as_deref(), Some("#content"), "{path}");
        assert_eq!(answer.attributes("main", "id"), ["content"], "{path}");
        assert!(!answer.texts("title")[0].starts_with(" "), "{path}");
        assert!(answer.texts("svg:not([aria-hidden=true])").is_empty(), "{path}");
    }
}

#[tokio::test]
async fn every_link_of_the_pages_works() {
    let edge = edge(&[task("a/b")]);
    for path in ["/", "/tasks/a%2Fb", "/nowhere"] {
        let answer = get(&edge, path).await;
        for link in answer.attributes("a[href^='/'], link[href]", "href") {
            let target = get(&edge, &link).await;
            assert_eq!(target.status, StatusCode::OK, "{path} links to {link}");
        }
    }
}

#[tokio::test]
async fn the_pages_need_no_script_and_no_inline_style() {
    let edge = edge(&[task("t")]);
    for path in ["/", "/tasks/t", "/nowhere"] {
        let answer = get(&edge, path).await;
        assert!(answer.texts("script, style, [style]").is_empty(), "{path}");
    }
}
