//! Drives a real Chromium by the `DevTools` protocol: opens pages, presses keys, runs scripts in them, and records
//! the browser's complaints.
//!
//! The protocol runs over a pipe, with a NUL after each message. So the test needs no port and no WebSocket, and the
//! browser ends with the pipe. Messages are plain JSON: the crates with a type for each message take longer to
//! compile than everything else here.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

use crate::{eventually, output_dir, program};

/// The time limit for anything that the browser does.
const PATIENCE: Duration = Duration::from_secs(60);

/// The domains of the protocol whose events a tab sends.
const DOMAINS: [&str; 5] = ["Page", "Runtime", "Log", "Network", "Audits"];

/// The window and the preferences with which a page is shown.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The window's width in pixels.
    pub width: u32,
    /// The window's height in pixels.
    pub height: u32,
    /// Whether the user prefers dark pages.
    pub dark: bool,
}

impl View {
    /// A laptop, light.
    pub const LIGHT: Self = Self { width: 1280, height: 800, dark: false };
    /// A laptop, dark.
    pub const DARK: Self = Self { dark: true, ..Self::LIGHT };
    /// A small phone, light.
    pub const NARROW: Self = Self { width: 320, ..Self::LIGHT };
}

/// A running browser with its own profile.
#[derive(Debug)]
pub struct Chromium {
    link: Arc<Link>,
    pid: Pid,
    _child: Child,
    profile: TempDir,
}

impl Chromium {
    /// Starts a browser and waits until it answers.
    ///
    /// # Errors
    /// If no browser exists, or it does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        let profile = TempDir::new()?;
        let log = File::create(profile.path().join("output"))?;
        let browser = program(
            "TASKPIPELINE_CHROMIUM",
            &["chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"],
        )?;
        // The browser reads the protocol from descriptor 3 and writes it to 4. Without unsafe code, only a shell can
        // put our pipes there.
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#]).arg(browser);
        command.args(["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"]);
        // Root has no sandbox, and a container has little shared memory.
        command.args(["--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]);
        // The browser requests only the pages: no updates, no metrics, no look-ups.
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1");
        command.arg(format!("--user-data-dir={}", profile.path().join("profile").display()));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("the browser has no pid")?;
        let to = child.stdin.take().context("the browser has no standard input")?;
        let from = child.stdout.take().context("the browser has no standard output")?;
        let link = Arc::new(Link::new(to));
        tokio::spawn(listen(from, Arc::clone(&link)));
        let chromium = Self { link, pid: Pid::from_raw(pid), _child: child, profile };
        let version = chromium.link.call(None, "Browser.getVersion", json!({})).await;
        version.with_context(|| format!("the browser did not come up\n{}", chromium.output()))?;
        Ok(chromium)
    }

    /// Opens an empty tab that shares no cookies and no cache with other tabs, and records its events.
    ///
    /// # Errors
    /// If the browser refuses.
    pub async fn tab(&self) -> anyhow::Result<Tab> {
        let text = |answer: &Value, field: &str| {
            answer[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {answer}"))
        };
        let context = self.link.call(None, "Target.createBrowserContext", json!({})).await?;
        let context = text(&context, "browserContextId")?;
        let target = json!({"url": "about:blank", "browserContextId": context});
        let target = self.link.call(None, "Target.createTarget", target).await?;
        let attach = json!({"targetId": text(&target, "targetId")?, "flatten": true});
        let attached = self.link.call(None, "Target.attachToTarget", attach).await?;
        let tab = Tab { link: Arc::clone(&self.link), session: text(&attached, "sessionId")? };
        for domain in DOMAINS {
            tab.call(&format!("{domain}.enable"), json!({})).await?;
        }
        Ok(tab)
    }

    /// The browser's output, for an error message.
    fn output(&self) -> String {
        std::fs::read_to_string(self.profile.path().join("output")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The signal goes to the group, because the renderers are children of the browser. The group may have ended already.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

/// A tab of a browser.
#[derive(Debug)]
pub struct Tab {
    link: Arc<Link>,
    session: String,
}

impl Tab {
    /// Calls a command of the protocol.
    ///
    /// # Errors
    /// If the browser refuses the command or does not answer.
    pub async fn call(&self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        self.link.call(Some(&self.session), method, parameters).await
    }

    /// Shows the following pages with this view.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn look(&self, view: View) -> anyhow::Result<()> {
        let View { width, height, dark } = view;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features).await.map(drop)
    }

    /// Opens a page and waits until it is loaded.
    ///
    /// # Errors
    /// If the page is not loaded.
    pub async fn goto(&self, url: &str) -> anyhow::Result<()> {
        self.follow(async {
            let answer = self.call("Page.navigate", json!({"url": url})).await?;
            match answer["errorText"].as_str() {
                Some(error) => Err(anyhow!("{url}: {error}")),
                None => Ok(()),
            }
        })
        .await
    }

    /// Runs an action that leads to another page, and waits until that page is loaded.
    ///
    /// # Errors
    /// If the action fails, or leads to no page.
    pub async fn follow(&self, act: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let loads = || self.events("Page.loadEventFired").len();
        let before = loads();
        act.await?;
        eventually(PATIENCE, async || {
            ensure!(loads() > before, "no page was loaded");
            Ok(())
        })
        .await
    }

    /// Runs a script in the page and returns its value; of a promise, the value that it resolves to. The page's
    /// policy does not apply to the script.
    ///
    /// # Errors
    /// If the script throws.
    pub async fn evaluate(&self, script: &str) -> anyhow::Result<Value> {
        let parameters = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", parameters).await?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("the script threw {thrown}");
        }
        Ok(answer["result"]["value"].take())
    }

    /// Presses `Tab` or `Enter`.
    ///
    /// # Errors
    /// As [`Self::call`], and for other keys.
    pub async fn press(&self, key: &str) -> anyhow::Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            _ => bail!("the key {key} is not supported"),
        };
        for kind in ["keyDown", "keyUp"] {
            let press = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                "text": if kind == "keyDown" { text } else { "" },
            });
            self.call("Input.dispatchKeyEvent", press).await?;
        }
        Ok(())
    }

    /// Clicks into the middle of the first element that the selector matches.
    ///
    /// # Errors
    /// If no element matches.
    pub async fn click(&self, selector: &str) -> anyhow::Result<()> {
        let middle = self
            .evaluate(&format!(
                "(() => {{ const it = document.querySelector({}); it.scrollIntoView({{block: 'center'}});
                   const box = it.getBoundingClientRect();
                   return {{x: box.x + box.width / 2, y: box.y + box.height / 2}}; }})()",
                json!(selector)
            ))
            .await?;
        for kind in ["mousePressed", "mouseReleased"] {
            let click =
                json!({"type": kind, "x": middle["x"], "y": middle["y"], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", click).await?;
        }
        Ok(())
    }

    /// Saves a picture of the window as `NAME.png` in the test's output folder.
    ///
    /// # Errors
    /// If the browser takes no picture.
    pub async fn screenshot(&self, name: &str) -> anyhow::Result<PathBuf> {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"})).await?;
        let bytes = STANDARD.decode(answer["data"].as_str().context("the answer has no picture")?)?;
        ensure!(bytes.starts_with(b"\x89PNG") && bytes.len() > 1_000, "{name} is not a picture");
        let file = output_dir()?.join(format!("{name}.png"));
        std::fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// The events of this kind since [`Self::forget`].
    #[must_use]
    pub fn events(&self, method: &str) -> Vec<Value> {
        let state = self.link.state();
        let told = |event: &&Event| event.session == self.session && event.method == method;
        state.events.iter().filter(told).map(|event| event.parameters.clone()).collect()
    }

    /// Drops the recorded events.
    pub fn forget(&self) {
        self.link.state().events.retain(|event| event.session != self.session);
    }

    /// Everything that a developer would see in red or yellow.
    ///
    /// That is errors and warnings on the console, uncaught errors, and requests that failed or were refused. It is
    /// also issues, which include reports of the policy. The status of the page itself is not included.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let documents: Vec<Value> = self
            .events("Network.responseReceived")
            .iter()
            .filter(|event| event["type"] == "Document")
            .map(|event| event["response"]["url"].clone())
            .collect();
        let serious = |level: &Value| ["error", "warning", "assert"].iter().any(|bad| level == bad);
        let mut complaints = Vec::new();
        let mut add = |method: &str, counts: &dyn Fn(&Value) -> bool| {
            let found = self.events(method).into_iter().filter(|event| counts(event));
            complaints.extend(found.map(|event| format!("{method} {event}")));
        };
        add("Log.entryAdded", &|event| {
            let entry = &event["entry"];
            let of_the_page = entry["source"] == "network" && documents.contains(&entry["url"]);
            serious(&entry["level"]) && !of_the_page
        });
        add("Runtime.consoleAPICalled", &|event| serious(&event["type"]));
        add("Runtime.exceptionThrown", &|_| true);
        add("Network.loadingFailed", &|_| true);
        add("Network.responseReceived", &|event| {
            event["type"] != "Document" && event["response"]["status"].as_u64() >= Some(400)
        });
        add("Audits.issueAdded", &|_| true);
        add("Page.javascriptDialogOpening", &|_| true);
        complaints
    }
}

#[derive(Debug)]
struct Event {
    session: String,
    method: String,
    parameters: Value,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    events: Vec<Event>,
}

/// The two pipes to the browser.
#[derive(Debug)]
struct Link {
    to: tokio::sync::Mutex<ChildStdin>,
    state: Mutex<State>,
    next: AtomicU64,
}

impl Link {
    fn new(to: ChildStdin) -> Self {
        Self { to: to.into(), state: Mutex::default(), next: AtomicU64::new(1) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self, session: Option<&str>, method: &str, parameters: Value) -> anyhow::Result<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let (sender, receiver) = oneshot::channel();
        self.state().waiting.insert(id, sender);
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.lock().await.write_all(&bytes).await.with_context(|| format!("{method}: no browser"))?;
        let mut answer = tokio::time::timeout(PATIENCE, receiver)
            .await
            .map_err(|_| anyhow!("the browser does not answer {method}"))?
            .map_err(|_| anyhow!("the browser ended before it answered {method}"))?;
        if let Some(error) = answer.get("error") {
            bail!("the browser refuses {method}: {error}");
        }
        Ok(answer["result"].take())
    }

    fn take(&self, mut message: Value) {
        let mut state = self.state();
        if let Some(id) = message["id"].as_u64() {
            if let Some(waiting) = state.waiting.remove(&id) {
                // The caller may have stopped waiting.
                let _ = waiting.send(message);
            }
        } else if let (Some(session), Some(method)) =
            (message["sessionId"].as_str().map(str::to_owned), message["method"].as_str().map(str::to_owned))
        {
            state.events.push(Event { session, method, parameters: message["params"].take() });
        }
    }
}

async fn listen(from: ChildStdout, link: Arc<Link>) {
    let mut from = BufReader::new(from);
    let mut message = Vec::new();
    while matches!(from.read_until(0, &mut message).await, Ok(1..)) {
        message.pop();
        if let Ok(message) = serde_json::from_slice(&message) {
            link.take(message);
        }
        message.clear();
    }
    // Every caller that still waits gets an error.
    link.state().waiting.clear();
}
