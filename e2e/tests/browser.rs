//! The pages in a real Chromium, from real workerd, with tasks that try to break them.
//!
//! The browser opens every page once, in both themes at three widths, and the tests check the results. Each test also
//! plants the fault that it looks for, to prove that it would notice it.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

mod seen;

use anyhow::{Context, ensure};
use seen::{PRODUCT, script};
use serde_json::{Value, json};
use taskpipeline_testkit::{Tab, View, eventually};

/// The minimum of every theme: WCAG 2.2, level AA, for text of any size.
const LEAST_CONTRAST: f64 = 4.5;

#[test]
fn every_page_shows_what_it_is_about_in_both_themes_at_three_widths() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        for sight in &product.sights {
            ensure!(sight.heading == sight.page.heading, "{sight} is headed {:?}", sight.heading);
            ensure!(sight.overflow == json!(0), "{sight} scrolls sideways by {} px", sight.overflow);
        }
        let pages = product.sights.len();
        println!(
            "{pages} sights: 6 of each of {} pages; their pictures are {}-*.png",
            pages / 6,
            seen::PICTURES
        );
        ensure!(pages >= 6 * 10, "only {pages}");

        // The test notices the effect of a wide element.
        let tab = product.tab().await?;
        tab.look(View { width: 320, ..View::LIGHT }).await?;
        tab.goto(&product.edge.url("/")).await?;
        tab.evaluate("document.querySelector('main').style.width = '400px'").await?;
        let overflow = tab.evaluate(script::OVERFLOW).await?;
        ensure!(
            overflow.as_f64() >= Some(80.0),
            "a page of 400 px in a window of 320 overflows by {overflow}"
        );
        Ok(())
    })
}

#[test]
fn hostile_titles_show_as_text_and_run_nothing() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        let tab = product.tab().await?;
        tab.goto(&product.edge.url("/")).await?;
        let rows = tab.evaluate(script::ROWS).await?;
        let mut shown = 0;
        for row in rows.as_array().context("no rows")? {
            let task = seen::tasks().into_iter().find(|task| row[0] == task.id).context("an unknown task")?;
            ensure!(row[1] == task.title, "{row} is not {:?}", task.title);
            shown += 1;
        }
        ensure!(shown == seen::tasks().len(), "{shown} tasks are shown");

        for task in seen::tasks() {
            tab.goto(&product.edge.url(&task.path())).await?;
            let texts = tab
                .evaluate("['h1', '.description', 'dd'].map(of => document.querySelector(of).textContent)")
                .await?;
            ensure!(texts == json!([task.title, task.description, task.id]), "{texts}");
            let title = tab.evaluate("document.title").await?;
            let said = title.as_str().unwrap_or_default();
            ensure!(said.ends_with(" · TaskPipeline"), "{said}");
            // The tasks created no script and no event handler.
            let made = tab.evaluate(script::MADE_BY_TASKS).await?;
            ensure!(made == json!([]), "{} made {made}", task.id);
        }
        ensure!(tab.complaints().is_empty(), "{:#?}", tab.complaints());
        println!("{shown} hostile tasks on the list and on pages of their own");

        tab.evaluate("document.querySelector('h1').innerHTML = '<img src=x onerror=\"window.ran = 1\">'")
            .await?;
        ensure!(
            tab.evaluate(script::MADE_BY_TASKS).await? == json!(["IMG"]),
            "unescaped text is not noticed"
        );
        Ok(())
    })
}

#[test]
fn axe_core_finds_no_violation_on_any_page_in_both_themes() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        let mut passes = 0;
        for sight in &product.sights {
            ensure!(sight.axe["violations"] == json!([]), "{sight}: {:#}", sight.axe["violations"]);
            passes += sight.axe["passes"].as_u64().unwrap_or_default();
        }
        println!("axe-core: {passes} rules passed on {} sights, none violated", product.sights.len());
        ensure!(passes >= 10 * product.sights.len() as u64, "axe-core looked at too little: {passes} rules");

        let tab = product.tab().await?;
        tab.goto(&product.edge.url("/")).await?;
        tab.evaluate("document.documentElement.removeAttribute('lang')").await?;
        let found = seen::axe(&tab).await?;
        ensure!(found["violations"][0]["id"] == "html-has-lang", "{found:#}");
        Ok(())
    })
}

#[test]
fn all_text_has_contrast_enough_in_both_themes() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        for dark in [false, true] {
            let mut texts = 0;
            let mut least = f64::MAX;
            for sight in product.sights.iter().filter(|sight| sight.view.dark == dark) {
                let ground = sight.contrast["ground"].as_f64().context("no background")?;
                ensure!((ground < 0.1) == dark && (ground > 0.8) != dark, "{sight}: its ground is {ground}");
                for text in sight.contrast["texts"].as_array().context("no texts")? {
                    let ratio = text["ratio"].as_f64().context("no ratio")?;
                    ensure!(ratio >= LEAST_CONTRAST, "{sight}: {text}");
                    least = least.min(ratio);
                    texts += 1;
                }
            }
            println!(
                "{} theme: {texts} texts, the least contrast is {least:.2}",
                if dark { "dark" } else { "light" }
            );
            ensure!(texts > 500, "only {texts}");
        }

        let tab = product.tab().await?;
        tab.goto(&product.edge.url("/")).await?;
        tab.evaluate("document.querySelector('h1').style.color = '#8a8a8a'").await?;
        let found = tab.evaluate(script::CONTRAST).await?;
        let grey = found["texts"].as_array().context("no texts")?.iter().find(|text| text["text"] == "Tasks");
        ensure!(grey.is_some_and(|grey| grey["ratio"].as_f64() < Some(LEAST_CONTRAST)), "{grey:?}");
        Ok(())
    })
}

#[test]
fn no_page_breaks_its_content_security_policy_which_does_block_what_it_should() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        for sight in &product.sights {
            ensure!(sight.violations == json!([]), "{sight} breaks its policy: {}", sight.violations);
        }

        // Each of these is blocked, and each block is reported: by the event, on the console, as an issue.
        let elsewhere = product.elsewhere().await?;
        for (directive, fault) in script::BREACHES {
            let tab = product.tab().await?;
            tab.goto(&product.edge.url("/")).await?;
            ensure!(tab.complaints().is_empty(), "{:?}", tab.complaints());
            let fault = fault.replace("ELSEWHERE", &elsewhere.url);
            tab.evaluate(&format!("(() => {{ {fault} }})()")).await?;
            eventually(seen::SOON, async || {
                let reported = tab.evaluate("window.violations").await?;
                let by_event = reported.as_array().is_some_and(|all| all.contains(&json!(directive)));
                ensure!(by_event, "{directive}: {reported}");
                let issue = tab.complaints().iter().any(|told| told.contains("ContentSecurityPolicyIssue"));
                ensure!(issue, "no issue for {directive}");
                ensure!(!tab.events("Log.entryAdded").is_empty(), "nothing on the console for {directive}");
                Ok(())
            })
            .await?;
            let ran = tab.evaluate("window.ran === 1").await?;
            ensure!(ran == false, "{directive} let a script run");
        }
        ensure!(elsewhere.visits() == 0, "{} requests went to another origin", elsewhere.visits());
        let (sights, faults) = (product.sights.len(), script::BREACHES.len());
        println!("no violation on {sights} sights; {faults} of {faults} faults blocked and reported");
        Ok(())
    })
}

#[test]
fn no_page_has_console_errors_or_failed_requests_and_the_icon_is_there() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        let mut requests = 0;
        for sight in &product.sights {
            ensure!(sight.complaints.is_empty(), "{sight}: {:#?}", sight.complaints);
            requests += sight.requests;
        }
        println!("{requests} requests on {} sights, none failed", product.sights.len());
        ensure!(requests >= 2 * product.sights.len(), "a page without its stylesheet: {requests} requests");

        let tab = product.tab().await?;
        tab.goto(&product.edge.url("/")).await?;
        let named = tab.evaluate("document.querySelector('link[rel=icon]').href").await?;
        for icon in [named.as_str().context("no icon")?, &product.edge.url("/favicon.ico")] {
            tab.forget();
            tab.goto(icon).await?;
            let answers = tab.events("Network.responseReceived");
            let answer = &answers.first().context("no answer")?["response"];
            ensure!(answer["status"] == 200 && answer["mimeType"] == "image/svg+xml", "{icon}: {answer}");
            let root = tab.evaluate("document.documentElement.nodeName").await?;
            ensure!(root == "svg" && tab.complaints().is_empty(), "{icon}: {root} {:?}", tab.complaints());
        }

        // The test would notice a missing stylesheet.
        tab.goto(&product.edge.url("/")).await?;
        tab.evaluate("document.querySelector('link[rel=stylesheet]').href = '/assets/gone.css'").await?;
        eventually(seen::SOON, async || {
            ensure!(!tab.complaints().is_empty(), "a missing stylesheet is not noticed");
            Ok(())
        })
        .await
    })
}

#[test]
fn the_keyboard_reaches_everything_in_order_shows_where_it_is_and_opens_a_task() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        for view in [View::LIGHT, View::DARK] {
            let tab = product.tab().await?;
            tab.look(view).await?;
            tab.goto(&product.edge.url("/")).await?;
            let mut wanted = vec!["Skip to the content".to_owned(), "TaskPipeline".to_owned()];
            wanted.extend(["All", "Pending", "In progress", "Completed", "Cancelled"].map(str::to_owned));
            wanted.push("Its key in the store".to_owned());
            wanted.extend(product.listed().await?);
            wanted.push("This list as JSON".to_owned());
            for wanted in &wanted {
                tab.press("Tab").await?;
                let focus = focus(&tab).await?;
                ensure!(focus["text"] == *wanted, "{wanted:?} should have the focus: {focus}");
                ensure!(focus["ringed"] == true, "nothing shows that {wanted:?} has the focus: {focus}");
                ensure!(focus["inWindow"] == true, "{wanted:?} has the focus out of sight: {focus}");
            }
            println!("{} stops by Tab, each with a visible ring", wanted.len());
        }

        // The skip link leads past everything, and the next stop is inside.
        let tab = product.tab().await?;
        tab.goto(&product.edge.url("/")).await?;
        tab.press("Tab").await?;
        tab.screenshot(&format!("{}-skip-link", seen::PICTURES)).await?;
        tab.press("Enter").await?;
        ensure!(tab.evaluate("document.activeElement.id").await? == "content", "the skip link does not skip");
        tab.press("Tab").await?;
        ensure!(focus(&tab).await?["text"] == "All", "the skip link leads elsewhere");

        // Past the other filters and the notice to the first task.
        for _ in 0..6 {
            tab.press("Tab").await?;
        }
        let first = focus(&tab).await?;
        tab.screenshot(&format!("{}-focused-task", seen::PICTURES)).await?;
        tab.follow(tab.press("Enter")).await?;
        let opened = tab.evaluate("[document.querySelector('h1').textContent, location.pathname]").await?;
        ensure!(opened == json!([first["text"], first["path"]]), "{first} opened {opened}");

        tab.evaluate(script::NO_RINGS).await?;
        tab.press("Tab").await?;
        ensure!(focus(&tab).await?["ringed"] == false, "a missing ring is not noticed");
        Ok(())
    })
}

#[test]
fn all_works_with_javascript_off() -> anyhow::Result<()> {
    PRODUCT.with(async |product| {
        let tab = product.tab().await?;
        tab.call("Emulation.setScriptExecutionDisabled", json!({"value": true})).await?;
        // This proves that JavaScript is off.
        tab.goto("data:text/html,<title>off</title><script>document.title = 'on'</script>").await?;
        ensure!(tab.evaluate("document.title").await? == "off", "scripts still run");
        tab.forget();

        for page in seen::pages().iter().filter(|page| page.reachable) {
            tab.goto(&product.edge.url(&page.path)).await?;
            let heading = tab.evaluate(script::HEADING).await?;
            ensure!(heading == page.heading.as_str(), "{}: {heading}", page.path);
        }

        let mut links = 0;
        let mut click = async |selector: &str, path: &str| {
            tab.follow(tab.click(selector)).await.with_context(|| format!("{selector} leads nowhere"))?;
            let at = tab.evaluate("location.pathname + location.search").await?;
            links += 1;
            ensure!(at.as_str().is_some_and(|at| at.starts_with(path)), "{selector} leads to {at}");
            anyhow::Ok(())
        };
        tab.goto(&product.edge.url("/")).await?;
        click(".filters li:nth-child(4) a", "/?status=completed").await?;
        click(".filters li:nth-child(1) a", "/").await?;
        click(".task a", "/tasks/").await?;
        click(".back a", "/").await?;
        tab.goto(&product.edge.url("/?limit=3")).await?;
        click(".pages a[rel=next]", "/?limit=3&cursor=").await?;
        click(".pages a:not([rel])", "/?limit=3").await?;
        click(".brand", "/").await?;
        tab.goto(&product.edge.url("/nowhere")).await?;
        click(".button", "/").await?;
        // The notice opens without a script too.
        tab.click("summary").await?;
        eventually(seen::SOON, async || {
            let open = tab.evaluate("document.querySelector('details').open").await?;
            ensure!(open == true, "the notice does not open");
            Ok(())
        })
        .await?;
        ensure!(tab.complaints().is_empty(), "{:#?}", tab.complaints());
        println!("with JavaScript off: {links} links followed");
        Ok(())
    })
}

/// The focused element, and whether a user can see the focus.
async fn focus(tab: &Tab) -> anyhow::Result<Value> {
    tab.evaluate(script::FOCUS).await
}
