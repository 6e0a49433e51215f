//! Shared parts of the browser tests: a running product with hostile tasks, and one look at every page.

#![allow(unreachable_pub)]

pub mod script;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use taskpipeline_e2e::{Edge, Shared};
use taskpipeline_testkit::{Chromium, Tab, Up, View, eventually, program};
use tokio::net::TcpListener;

pub const SOON: Duration = Duration::from_secs(30);

/// The prefix of the pictures' names.
pub const PICTURES: &str = "browser";

/// The number of tabs at a time.
const TABS: usize = 3;

const WIDTHS: [u32; 3] = [1280, 768, 320];

pub static PRODUCT: Shared<Product> = Shared::new(|| Box::pin(Product::start()));

/// A task in the form in which it is published.
#[derive(Clone)]
pub struct HostileTask {
    name: &'static str,
    pub id: String,
    pub title: String,
    pub description: String,
    status: &'static str,
}

impl HostileTask {
    pub fn path(&self) -> String {
        format!("/tasks/{}", utf8_percent_encode(&self.id, NON_ALPHANUMERIC))
    }
}

/// Titles, descriptions and ids that break a page that does not escape, encode, isolate or wrap them.
pub fn tasks() -> Vec<HostileTask> {
    let task = |name, id: &str, title: &str, description: &str, status| HostileTask {
        name,
        id: id.to_owned(),
        title: title.to_owned(),
        description: description.to_owned(),
        status,
    };
    let script = "<script>window.ran = 1</script>";
    let image = "\"><img src=x onerror=\"window.ran = 1\">";
    let quotes = "' onmouseover='window.ran = 1' \" autofocus onfocus=\"window.ran = 1\" `${1}` &lt;b&gt;";
    let bidi = "\u{202e}txt.exe\u{2066}\u{2067} شرح\u{200f} \u{202d}ab\u{2069}\u{2069}\u{2069}";
    vec![
        task("plain", "task-1", "Water the plants", "The ones\non the balcony.", "pending"),
        task("script", script, script, &format!("</div></main>{script}"), "in_progress"),
        task("image", "a/b?c#d%2F..&", image, &image.repeat(20), "completed"),
        task("quotes", "\"'`<&>", quotes, "{{ 7*7 }} {% raw %} &amp;amp;", "cancelled"),
        task("bidi", bidi, bidi, bidi, "pending"),
        task("emoji", &"😀".repeat(64), &"😀".repeat(200), &"👩‍👧".repeat(300), "in_progress"),
        task("unbroken", &"W".repeat(256), &"W".repeat(200), &"W".repeat(2000), "completed"),
    ]
}

/// A page that every visitor can reach.
#[derive(Clone, Debug)]
pub struct Page {
    name: String,
    pub path: String,
    pub heading: String,
    /// Whether the page exists once tasks exist.
    pub reachable: bool,
}

pub fn pages() -> Vec<Page> {
    let page = |name: &str, path: &str, heading: &str| Page {
        name: name.to_owned(),
        path: path.to_owned(),
        heading: heading.to_owned(),
        reachable: name != "empty",
    };
    let mut pages = vec![
        page("empty", "/", "Tasks"),
        page("list", "/", "Tasks"),
        page("list-in-progress", "/?status=in_progress", "Tasks in progress"),
        page("list-first-page", "/?limit=3", "Tasks"),
        // The cursor is past every id, so the page has no tasks.
        page("list-no-match", "/?status=pending&cursor=~%25F4%258F%25BF%25BF", "Pending tasks"),
        page("error-400", "/?limit=0&status=x&cursor=%00", "Invalid request"),
        page("error-404", "/nowhere", "Page not found"),
        page("error-404-task", "/tasks/none", "Task not found"),
        page("error-503", "/tasks/broken", "This task cannot be shown"),
    ];
    pages.extend(tasks().iter().map(|task| page(&format!("task-{}", task.name), &task.path(), &task.title)));
    pages
}

/// The result of one look at a page.
pub struct Sight {
    pub page: Page,
    pub view: View,
    pub heading: Value,
    /// By how many pixels the page is wider than the window.
    pub overflow: Value,
    pub contrast: Value,
    /// The violations of the policy, from the page's own events.
    pub violations: Value,
    pub complaints: Vec<String>,
    pub requests: usize,
    pub axe: Value,
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let theme = if self.view.dark { "dark" } else { "light" };
        write!(f, "{} at {} px in the {theme} theme", self.page.name, self.view.width)
    }
}

/// The whole product with the tasks, a browser, and its results.
pub struct Product {
    pub edge: Edge,
    pub sights: Vec<Sight>,
    chromium: Chromium,
    _up: Up,
}

impl Product {
    async fn start() -> anyhow::Result<Self> {
        let up = Up::start().await?;
        let chromium = Chromium::start().await?;
        let mut product = Self { edge: Edge::of(&up), sights: Vec::new(), chromium, _up: up };
        let (at_first, later): (Vec<_>, Vec<_>) = pages().into_iter().partition(|page| !page.reachable);
        product.see(at_first).await?;
        product.fill().await?;
        product.see(later).await?;
        Ok(product)
    }

    /// Opens a tab that records violations of a page's policy in `window.violations`.
    pub async fn tab(&self) -> anyhow::Result<Tab> {
        let tab = self.chromium.tab().await?;
        let listen = json!({"source": script::LISTEN_FOR_VIOLATIONS});
        tab.call("Page.addScriptToEvaluateOnNewDocument", listen).await?;
        tab.look(View::LIGHT).await?;
        Ok(tab)
    }

    /// The titles on the list, in their order.
    pub async fn listed(&self) -> anyhow::Result<Vec<String>> {
        let (_, list) = self.edge.json("/api/tasks").await?;
        let tasks = list["tasks"].as_array().context("no tasks")?;
        Ok(tasks.iter().filter_map(|task| task["title"].as_str().map(str::to_owned)).collect())
    }

    /// Starts another origin, which no page may contact.
    pub async fn elsewhere(&self) -> anyhow::Result<Elsewhere> {
        Elsewhere::start().await
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let nats = async_nats::connect(self._up.nats_url()).await?;
        for task in tasks() {
            let HostileTask { name, id, title, description, status } = task;
            let data = json!({"id": id, "title": title, "description": description, "status": status});
            let event = json!({"correlationId": format!("browser-{name}"), "data": data});
            nats.publish("tasks.created", event.to_string().into()).await?;
        }
        nats.flush().await?;
        self.edge.put("tasks:broken", b"<script>window.ran = 1</script>".to_vec()).await?;
        eventually(SOON, async || {
            let listed = self.listed().await?.len();
            ensure!(listed == tasks().len(), "{listed} tasks are listed\n{}", self._up.process().tail());
            Ok(())
        })
        .await
    }

    async fn see(&mut self, pages: Vec<Page>) -> anyhow::Result<()> {
        let themes = [false, true];
        let views = themes.map(|dark| WIDTHS.map(|width| View { width, height: 800, dark }));
        let each = pages.iter().flat_map(|page| views.as_flattened().iter().map(move |view| (page, *view)));
        let looks = each.map(async |(page, view)| {
            self.look(page.clone(), view).await.with_context(|| format!("{} at {view:?}", page.name))
        });
        let sights: Vec<Sight> = stream::iter(looks).buffered(TABS).try_collect().await?;
        self.sights.extend(sights);
        Ok(())
    }

    async fn look(&self, page: Page, view: View) -> anyhow::Result<Sight> {
        let tab = self.tab().await?;
        tab.look(view).await?;
        tab.goto(&self.edge.url(&page.path)).await?;
        tab.evaluate(script::OPEN_DETAILS).await?;
        let theme = if view.dark { "dark" } else { "light" };
        tab.screenshot(&format!("{PICTURES}-{}-{theme}-{}", page.name, view.width)).await?;
        Ok(Sight {
            heading: tab.evaluate(script::HEADING).await?,
            overflow: tab.evaluate(script::OVERFLOW).await?,
            contrast: tab.evaluate(script::CONTRAST).await?,
            violations: tab.evaluate("window.violations").await?,
            complaints: tab.complaints(),
            requests: tab.events("Network.responseReceived").len(),
            // This comes last, because it changes the page.
            axe: axe(&tab).await?,
            page,
            view,
        })
    }
}

/// The findings of axe-core on a page.
pub async fn axe(tab: &Tab) -> anyhow::Result<Value> {
    let file = program("TASKPIPELINE_AXE_CORE", &[])?;
    let source = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    tab.evaluate(&format!("{source}; 0")).await?;
    tab.evaluate(script::AXE).await
}

/// Another origin that counts its visitors.
pub struct Elsewhere {
    pub url: String,
    visits: Arc<AtomicUsize>,
}

impl Elsewhere {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let visits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&visits);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { url, visits })
    }

    pub fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}
