//! The web pages: what they show without script, and in a real browser.

mod common;

use chromiumoxide::cdp::browser_protocol::emulation::MediaFeature;
use chromiumoxide::cdp::browser_protocol::log::{self, EventEntryAdded, LogEntryLevel};
use chromiumoxide::cdp::js_protocol::runtime::{EvaluateParams, EventExceptionThrown};
use chromiumoxide::{Browser, BrowserConfig, Page};
use common::{Deadline, Server, VIN};
use futures::{FutureExt, StreamExt};
use reqwest::header;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// HTML, a script, an escape of terminals, and a mark that changes the direction of writing.
const EVIL: &str = "<img src=x onerror=alert(1)><script>document.title='owned'</script>\u{1b}[31m\u{202e}";

fn log() -> String {
    let line = |minute: u32| format!("2026-03-01 10:{minute:02}:00 ERROR [main] ota.Flash - E_FAIL {EVIL}\n");
    (0..60).step_by(5).map(line).collect()
}

async fn start() -> (TempDir, Server, String) {
    let data = TempDir::new().expect("a folder");
    let server = Server::start(data.path());
    let labels = json!({"site": "<img src=x onerror=alert(1)>"});
    let batch = server.new_batch_of(
        json!({"vehicle_id": "veh-1", "vin": VIN, "firmware": "7.2.0", "platform": "mk4", "labels": labels}),
    );
    let batch = batch.await;
    server.put(&batch, "ota.log", log()).await;
    server.complete(&batch).await;
    server.final_report(&batch, 0).await;
    let newer =
        server.new_batch_of(json!({"vehicle_id": "veh-2", "vin": "WVWZZZ1JZXW000009", "firmware": "7.2.1"})).await;
    server.put(&newer, "ota.log", "2026-03-02 10:00:00 ERROR [main] ota.Flash - E_ABORT\n").await;
    (data, server, batch)
}

/// The pages of a fleet, each with a text that it must show.
fn pages(batch: &str) -> Vec<(String, &'static str)> {
    vec![
        ("/".to_owned(), "E_FAIL"),
        ("/batches".to_owned(), VIN),
        (format!("/batches?vin={VIN}"), "7.2.0"),
        (format!("/batches/{batch}"), "ota.log:1"),
        (format!("/batches/{batch}?code=E_FAIL&context=3&since=2026-03-01T10:30:00Z"), "ota.log:7"),
        ("/firmware".to_owned(), "E_ABORT"),
        ("/firmware?firmware=7.2.0&against=7.2.1".to_owned(), "E_FAIL"),
        ("/codes".to_owned(), "E_FAIL"),
        ("/codes/E_FAIL".to_owned(), "mk4"),
        ("/vehicles".to_owned(), "veh-1"),
        (format!("/vehicles/{VIN}"), "E_FAIL"),
        ("/sql?sql=SELECT+code,+text+FROM+errors".to_owned(), "13 rows"),
        ("/upload".to_owned(), "Vehicle"),
    ]
}

#[tokio::test]
async fn a_batch_shows_what_changed_since_the_batch_before() {
    let (_data, server, _) = start().await;
    let next = server.new_batch_of(json!({"vehicle_id": "veh-1", "vin": VIN, "firmware": "7.2.1"})).await;
    let lines =
        "2026-03-03 10:00:00 ERROR [main] ota.Flash - E_ABORT\n2026-03-03 10:00:01 INFO [main] bms.Cell - E_FAIL\n";
    server.put(&next, "ota.log", lines).await;
    let page = |query: &'static str| {
        let url = server.root_url(&format!("/batches/{next}{query}"));
        async move { reqwest::get(url).await.expect("it answers").text().await.expect("text") }
    };
    let text = page("").await;
    let (_, changes) = text.split_once("id=\"changes\"").expect("there was a batch before");
    let (changes, _) = changes.split_once("</section>").expect("it ends");
    for shown in ["12 occurrences on 12 lines", "firmware=7.2.0", ">12</td><td class=\"number\">1</td>", "new"] {
        assert!(changes.contains(shown), "{shown}: {changes}");
    }
    for (query, is_shown) in [("?level=error", false), ("?level=info", true), ("?component=bms.Cell", true)] {
        let text = page(query).await;
        let (_, lines) = text.split_once("<ol class=\"lines\">").expect("there are lines");
        assert_eq!(lines.contains("E_FAIL"), is_shown, "{query}");
        assert_eq!(lines.contains("E_ABORT"), !is_shown, "{query}");
    }
    server.stop();
}

#[tokio::test]
async fn every_page_has_its_data_without_script() {
    let (_data, server, batch) = start().await;
    for (path, shows) in pages(&batch) {
        let answer = reqwest::get(server.root_url(&path)).await.expect("it answers");
        assert_eq!(answer.status(), 200, "{path}");
        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("text").to_owned();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let text = answer.text().await.expect("text");
        assert!(text.contains(shows), "{path} must show {shows}: {text}");
        assert!(
            !text.contains("<img") && !text.contains("<script>") && !text.contains(['\u{1b}', '\u{202e}']),
            "{path}: {text}"
        );
        assert!(!text.contains("https://") && text.len() < 100 << 10, "{path} has {} bytes", text.len());
        for needed in ["<html lang=\"en\">", "<main id=\"main\"", "aria-label=\"Pages\"", "<h1>"] {
            assert!(text.contains(needed), "{path} has no {needed}");
        }
    }
    for (path, status) in [
        ("/batches/x", 404),
        ("/codes/none", 404),
        ("/vehicles/none", 404),
        ("/batches?status=odd", 422),
        ("/codes?since=odd", 422),
    ] {
        let answer = reqwest::get(server.root_url(path)).await.expect("it answers");
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert!(answer.text().await.expect("text").contains("role=\"alert\""), "{path}");
    }
    let refused = reqwest::get(server.root_url("/sql?sql=DROP+TABLE+errors")).await.expect("it answers");
    assert!(refused.text().await.expect("text").contains("role=\"alert\""));
    server.stop();
}

#[tokio::test]
async fn a_download_has_the_bytes_of_the_api() {
    let (_data, server, _) = start().await;
    let sql = "SELECT code, count(*) AS n FROM errors GROUP BY code ORDER BY code";
    for (format, media_type) in [
        ("csv", "text/csv"),
        ("parquet", "application/vnd.apache.parquet"),
        ("arrow", "application/vnd.apache.arrow.stream"),
    ] {
        let path = format!("/sql/download?format={format}&sql={}", sql.replace(' ', "+"));
        let page = reqwest::get(server.root_url(&path)).await.expect("it answers");
        assert!(
            page.headers()[header::CONTENT_DISPOSITION].to_str().expect("text").contains(&format!("rows.{format}"))
        );
        let headers = [("Accept", media_type), ("Content-Type", "application/json")];
        let api = server
            .send_with(reqwest::Method::POST, "/query", &headers, json!({"sql": sql}).to_string().into_bytes())
            .await;
        assert_eq!(page.bytes().await.expect("bytes"), api.bytes().await.expect("bytes"), "{format}");
    }
    server.stop();
}

/// A headless Chromium, and what went wrong in its pages.
struct Chromium {
    browser: Browser,
    events: JoinHandle<()>,
    _profile: TempDir,
}

impl Chromium {
    async fn start() -> Chromium {
        let profile = TempDir::new().expect("a folder");
        let flags = [
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ];
        let config = BrowserConfig::builder().no_sandbox().user_data_dir(profile.path()).args(flags).build();
        let (browser, mut handler) =
            Browser::launch(config.expect("Chromium is installed")).await.expect("Chromium starts");
        let events = tokio::spawn(async move { while handler.next().await.is_some() {} });
        Chromium { browser, events, _profile: profile }
    }

    /// Opens a page, in a tab of its own.
    async fn open(&self, url: String) -> Tab {
        let page = self.browser.new_page("about:blank").await.expect("a tab");
        page.execute(log::EnableParams::default()).await.expect("the log");
        let entries = page.event_listener::<EventEntryAdded>().await.expect("the log");
        let exceptions = page.event_listener::<EventExceptionThrown>().await.expect("exceptions");
        page.goto(url).await.expect("the page");
        Tab { page, entries, exceptions }
    }

    async fn stop(mut self) {
        self.browser.close().await.expect("Chromium stops");
        self.browser.wait().await.expect("Chromium stops");
        self.events.abort();
    }
}

/// A page in the browser.
struct Tab {
    page: Page,
    entries: chromiumoxide::listeners::EventStream<EventEntryAdded>,
    exceptions: chromiumoxide::listeners::EventStream<EventExceptionThrown>,
}

impl Tab {
    /// The value of an expression.
    async fn value(&self, expression: &str) -> Value {
        match self.page.evaluate(expression).await {
            Ok(value) => value.into_value().unwrap_or(Value::Null),
            // The page is being replaced by the next one.
            Err(_) => Value::Null,
        }
    }

    /// Waits until an expression is true.
    async fn wait_for(&self, expression: &str) {
        let deadline = Deadline::new(expression);
        while self.value(&format!("Boolean({expression})")).await != json!(true) {
            deadline.check();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Fails if the console had an error.
    async fn close(mut self) {
        while let Some(Some(entry)) = self.entries.next().now_or_never() {
            assert_ne!(entry.entry.level, LogEntryLevel::Error, "{}", entry.entry.text);
        }
        let thrown = self.exceptions.next().now_or_never().flatten();
        assert!(thrown.is_none(), "{thrown:?}");
        self.page.close().await.expect("the tab closes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_follows_a_batch_chooses_a_time_and_queries() {
    let (_data, server, batch) = start().await;
    let chromium = Chromium::start().await;
    // No page runs what a log says, and none has an error in the console.
    for (path, shows) in pages(&batch) {
        let tab = chromium.open(server.root_url(&path)).await;
        tab.wait_for(&format!("document.body.innerText.includes({shows:?}) && document.title.endsWith('Argus')")).await;
        assert_eq!(tab.value("document.querySelectorAll('main script, main img').length").await, json!(0), "{path}");
        // The page is as wide as a phone.
        tab.page
            .execute(chromiumoxide::cdp::browser_protocol::emulation::SetDeviceMetricsOverrideParams::new(
                390, 800, 1.0, true,
            ))
            .await
            .expect("a phone");
        assert_eq!(tab.value("document.documentElement.scrollWidth <= 390").await, json!(true), "{path}");
        tab.close().await;
    }

    // A batch that is open in the browser becomes final without a reload.
    let live = server.new_batch().await;
    let tab = chromium.open(server.root_url(&format!("/batches/{live}"))).await;
    tab.wait_for("document.getElementById('facts').innerText.includes('pending')").await;
    tab.value("window.same = true").await;
    server.put(&live, "a.log", log()).await;
    tab.wait_for("document.getElementById('codes').innerText.includes('E_FAIL')").await;
    server.complete(&live).await;
    tab.wait_for("document.getElementById('progress').innerText.includes('final') && window.same").await;
    tab.close().await;

    // A span of time.
    let tab = chromium.open(server.root_url(&format!("/batches/{batch}"))).await;
    tab.wait_for("document.querySelectorAll('[data-brush] a[data-since]').length > 5").await;
    tab.value(
        "(() => { const bars = document.querySelectorAll('[data-brush] a[data-since]'); \
         const send = (kind, bar) => bar.dispatchEvent(new PointerEvent(kind, {bubbles: true, button: 0})); \
         send('pointerdown', bars[5]); send('pointerover', bars[10]); send('pointerup', bars[10]); })()",
    )
    .await;
    tab.wait_for("location.search.includes('since=') && document.querySelectorAll('ol.lines li').length === 2").await;
    tab.close().await;

    // SQL.
    let tab = chromium.open(server.root_url("/sql")).await;
    tab.wait_for("document.querySelector('form[data-query]')").await;
    let run = |sql: &str| {
        format!(
            "(() => {{ const form = document.querySelector('form[data-query]'); form.elements.sql.value = {sql:?}; form.requestSubmit(); }})()"
        )
    };
    tab.value(&run("SELECT code, count(*) AS n FROM errors GROUP BY code ORDER BY code")).await;
    tab.wait_for(
        "document.querySelector('#result table')?.innerText.includes('E_ABORT') && location.search.includes('GROUP')",
    )
    .await;
    tab.value(&run("SELECT count(*) FROM range(1, 1000000000000) a")).await;
    tab.wait_for("!document.querySelector('[data-cancel]').hidden").await;
    tab.value("document.querySelector('[data-cancel]').click()").await;
    tab.wait_for("document.querySelector('[data-running]').value === 'cancelled' && document.querySelector('[data-cancel]').hidden").await;
    tab.close().await;
    chromium.stop().await;
    server.stop();
}

/// The rules of axe-core that a page breaks, with the elements that break them; those of minor impact are left out.
const BROKEN_RULES: &str = "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations \
    .filter((rule) => ['serious', 'critical'].includes(rule.impact)) \
    .map((rule) => [rule.id, ...rule.nodes.slice(0, 3).map((node) => node.html + ' ' + node.any.map((check) => check.message).join())])))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_excludes_people_in_light_or_dark() {
    let (_data, server, batch) = start().await;
    let script = tokio::task::spawn_blocking(|| std::fs::read_to_string(common::python::axe()).expect("reads"));
    let script = script.await.expect("no panic");
    let chromium = Chromium::start().await;
    let mut broken = Vec::new();
    for (path, shows) in pages(&batch) {
        let tab = chromium.open(server.root_url(&path)).await;
        tab.wait_for(&format!("document.body.innerText.includes({shows:?})")).await;
        for scheme in ["light", "dark"] {
            let feature = MediaFeature::new("prefers-color-scheme", scheme);
            tab.page.emulate_media_features(vec![feature]).await.expect("it is emulated");
            tab.page.evaluate(script.as_str()).await.expect("axe-core is loaded");
            let run = EvaluateParams::builder().expression(BROKEN_RULES).await_promise(true).return_by_value(true);
            let found = tab.page.evaluate_expression(run.build().expect("an expression")).await.expect("axe-core runs");
            let found: String = found.into_value().expect("a text");
            if found != "[]" {
                broken.push(format!("{path} ({scheme}): {found}"));
            }
        }
        tab.close().await;
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    chromium.stop().await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_uploads_files_and_ends_at_their_batch() {
    let data = TempDir::new().expect("a folder");
    let server = Server::start(data.path());
    let chromium = Chromium::start().await;
    let tab = chromium.open(server.root_url("/upload")).await;
    tab.wait_for("document.querySelector('form[data-upload]')").await;
    let script = format!(
        "(() => {{ const form = document.querySelector('form[data-upload]'), files = new DataTransfer(); \
         files.items.add(new File([{:?}], 'ota log.txt')); files.items.add(new File(['E_ABORT\\n'], 'b.log')); \
         form.elements.files.files = files.files; form.elements.vehicle_id.value = 'veh-7'; form.elements.vin.value = {VIN:?}; \
         form.elements.firmware.value = '7.2.1'; form.requestSubmit(); }})()",
        log()
    );
    tab.value(&script).await;
    tab.wait_for(
        "location.pathname.startsWith('/batches/') && document.getElementById('progress')?.innerText.includes('final')",
    )
    .await;
    tab.wait_for("document.getElementById('codes').innerText.includes('E_ABORT')").await;
    let batch = server.get("/batches").await["batches"][0].clone();
    assert_eq!(
        (&batch["vehicle_id"], &batch["total_files"], &batch["status"]),
        (&json!("veh-7"), &json!(2), &json!("completed"))
    );
    let id = batch["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/batches/{id}/report")).await["total_errors"], json!(13));
    tab.close().await;
    chromium.stop().await;
    server.stop();
}
