//! What operators run: the compose files, the dashboard and the alerts, against the real programs.

mod common;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::kafka_server::KafkaServer;
use common::{Deadline, Server, argus};
use serde_json::Value;
use tempfile::TempDir;

fn docker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker")
}

/// All files below a folder, but for passwords.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there").flatten().map(|entry| entry.path());
    let entries = entries.filter(|path| path.file_name().is_none_or(|name| name != "secrets"));
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("text")
}

#[test]
fn the_compose_files_are_valid() {
    // A copy, because the passwords are created beside the files.
    let copy = TempDir::new().expect("a folder");
    let status = Command::new("cp").arg("-r").arg(docker()).arg(copy.path()).status().expect("cp runs");
    assert!(status.success());
    let folder = copy.path().join("docker");
    assert!(Command::new(folder.join("secrets/create")).status().expect("it runs").success());
    for file in ["compose.yaml", "compose.dev.yaml", "compose.cluster.yaml"] {
        let output = Command::new("docker-compose").arg("-f").arg(folder.join(file)).args(["config", "-q"]).output();
        let output = output.expect("docker-compose runs");
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        // Each image has a version.
        for image in read(&folder.join(file)).lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
            let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} has no tag"));
            assert_ne!(tag, "latest", "{image}");
        }
    }
}

#[test]
fn every_variable_and_flag_of_the_deployment_files_exists() {
    let help = argus(&["serve", "--help"], b"");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let mut checked = 0;
    for path in files(&docker()) {
        let text = read(&path);
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        // The settings of docker/local itself have a prefix of their own.
        let variables = text.split(|c| !is_name(c)).filter(|word| word.starts_with("ARGUS_"));
        let variables = variables.filter(|word| !word.starts_with("ARGUS_LOCAL_"));
        for variable in variables.collect::<BTreeSet<_>>() {
            // Values that may hold a password are not shown.
            let listed = ["=", "]"].iter().any(|end| help.contains(&format!("[env: {variable}{end}")));
            assert!(listed, "{} uses {variable}", path.display());
            checked += 1;
        }
        // The flags of the commands that start Argus.
        let lines = text.lines().filter(|line| line.contains("\"serve\"") || line.contains("argus serve "));
        for flag in lines.flat_map(|line| line.split([' ', '"', ',', ']'])).filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("{flag} ")), "{} uses {flag}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 10, "the files are found");
}

/// A collector of traces, which has the path and the body of each request that it got.
async fn collector() -> (u16, tokio::sync::mpsc::UnboundedReceiver<(String, Vec<u8>)>) {
    let (to, requests) = tokio::sync::mpsc::unbounded_channel();
    let collect = async move |uri: axum::http::Uri, body: axum::body::Bytes| {
        // The test may have ended.
        let _ = to.send((uri.path().to_owned(), body.to_vec()));
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let router = axum::Router::new().fallback(collect);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, requests)
}

// The collector answers while the test waits for the end of the server.
#[tokio::test(flavor = "multi_thread")]
async fn traces_reach_a_collector_and_continue_those_of_clients() {
    let (port, mut requests) = collector().await;
    let data = TempDir::new().expect("a folder");
    let server = Server::start_with(data.path(), &["--otlp", &format!("http://127.0.0.1:{port}")]);
    let trace = uuid::Uuid::new_v4().simple().to_string();
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let batch = server.new_batch().await;
    let path = format!("/batches/{batch}/files/a.log");
    let put = server.send_with(reqwest::Method::PUT, &path, &[("traceparent", &parent)], b"E_FAIL\n".to_vec()).await;
    assert!(put.status().is_success());
    server.sql("SELECT count(*) FROM errors").await;
    // The last spans are sent when the server stops.
    server.stop();
    let mut all = Vec::new();
    while let Ok((path, body)) = requests.try_recv() {
        assert_eq!(path, "/v1/traces");
        all.extend(body);
    }
    let contains = |part: &[u8]| all.windows(part.len()).any(|window| window == part);
    for name in ["argus", "request", "round", "commit", "query"] {
        assert!(contains(name.as_bytes()), "{name}");
    }
    let trace = uuid::Uuid::parse_str(&trace).expect("an id");
    assert!(contains(trace.as_bytes()), "the trace of the client goes on");
}

#[test]
fn the_local_topology_runs_argus_with_all_servers_and_stops_them() {
    let data = TempDir::new().expect("a folder");
    // PostgreSQL runs as another user.
    std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let tools = common::python::servers();
    // Argus finds the servers by the variables alone; the second start finds the data of the first.
    for _ in 0..2 {
        let output = Command::new(docker().join("local"))
            .arg(data.path())
            .args([common::ARGUS, "check"])
            .env("ARGUS_LOCAL_TOOLS", tools)
            .output()
            .expect("it runs");
        let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}{error}");
        for server in ["metadata", "store", "kafka", "redis"] {
            let row = format!("ok      {server}");
            assert!(text.lines().any(|line| line.starts_with(&row)), "{text}");
        }
    }
    let folder = data.path().to_str().expect("text");
    let left = Command::new("pgrep").args(["-f", folder]).output().expect("pgrep runs");
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

#[tokio::test]
async fn the_local_cluster_answers_behind_its_load_balancer_and_stops() {
    let data = TempDir::new().expect("a folder");
    std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let binaries = Path::new(common::ARGUS).parent().expect("a folder").display().to_string();
    let path = format!("{binaries}:{}", std::env::var("PATH").unwrap_or_default());
    let mut running = Command::new(docker().join("local"))
        .arg(data.path())
        .env("ARGUS_LOCAL_TOOLS", common::python::servers())
        .env("ARGUS_LOCAL_KAFKA", "memory://tansu/")
        .env("ARGUS_LOCAL_CLUSTER", "1")
        .env("ARGUS_LISTEN", &address)
        .env("PATH", path)
        .spawn()
        .expect("it runs");
    let client = reqwest::Client::new();
    let api = format!("http://{address}/api/v1");
    // The roles that answer, until both have.
    let deadline = Deadline::new("a leader and its followers behind the load balancer");
    let mut roles = BTreeSet::new();
    while roles.len() < 2 {
        deadline.check();
        assert!(running.try_wait().expect("it can be waited for").is_none(), "it has ended");
        let Ok(answer) = client.get(format!("http://{address}/readyz")).send().await else { continue };
        let Ok(ready) = answer.json::<serde_json::Value>().await else { continue };
        roles.extend(ready["cluster"]["role"].as_str().map(str::to_owned));
    }
    for number in 0..6 {
        let described = format!(r#"{{"vehicle_id": "v{number}", "vin": "{}"}}"#, common::VIN);
        let created = client.post(format!("{api}/batches")).body(described).send().await.expect("an answer");
        let created: serde_json::Value = created.json().await.expect("JSON");
        let id = created["id"].as_str().expect("an id");
        let put = client.put(format!("{api}/batches/{id}/files/a.log")).body("E_FAIL\n").send().await;
        let receipt: serde_json::Value = put.expect("an answer").json().await.expect("JSON");
        let report = format!("{api}/batches/{id}/report?min_epoch={}", receipt["epoch"]);
        let report = client.get(report).send().await.expect("an answer");
        let report: serde_json::Value = report.json().await.expect("JSON");
        assert_eq!(report["total_errors"], 1, "{report}");
    }
    let stopped = Command::new("kill").args(["-TERM", &running.id().to_string()]).status().expect("kill runs");
    assert!(stopped.success());
    running.wait().expect("it ends");
    let folder = data.path().to_str().expect("text");
    let left = Command::new("pgrep").args(["-f", folder]).output().expect("pgrep runs");
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

/// A Prometheus that scrapes one Argus every second; killed when dropped.
struct Prometheus {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Prometheus {
        let folder = TempDir::new().expect("a folder");
        let alerts = docker().join("prometheus/alerts.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  - job_name: argus\n    static_configs: [{{targets: [\"{target}\"]}}]\n",
            alerts.display()
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("writes");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus starts");
        Prometheus { child, port, _folder: folder }
    }

    /// The rows of a query; `None` while Prometheus does not answer.
    async fn query(&self, query: &str) -> Option<Vec<Value>> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.port);
        let answer = reqwest::Client::new().get(&url).query(&[("query", query)]).send().await.ok()?;
        let answer: Value = answer.json().await.ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The series that an expression selects: names with their labels.
fn selectors(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = expression;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let labels = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((labels, _)) => format!("{{{labels}}}"),
            None => String::new(),
        };
        if name.starts_with("argus_") || name.starts_with("process_") || name == "up" {
            found.push(format!("{name}{labels}"));
        }
        rest = &after[labels.len()..];
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_and_the_alerts_has_an_answer() {
    let kafka = KafkaServer::start();
    kafka.create_topic("lines", 1).await;
    let data = TempDir::new().expect("a folder");
    let brokers = kafka.brokers();
    let server = Server::start_with(data.path(), &["--kafka", &brokers, "--lines-topic", "lines"]);
    let target = server.root_url("");
    let prometheus = Prometheus::start(target.trim_start_matches("http://").trim_end_matches('/'));
    let dashboard: Value = serde_json::from_str(&read(&docker().join("grafana/dashboards/argus.json"))).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let mut queries: BTreeSet<String> =
        targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect();
    assert!(queries.len() > 15);
    let alerts = read(&docker().join("prometheus/alerts.yml"));
    let expressions: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert_eq!(expressions.len(), alerts.matches("alert:").count());
    // An alert that is not firing is empty, so its series are asked for. Errors are not there before the first one.
    let of_alerts = expressions.iter().flat_map(|expression| selectors(expression));
    queries.extend(of_alerts.filter(|selector| !selector.contains("5..")));
    let batch = server.new_batch().await;
    let deadline = Deadline::new("an answer to every query");
    while !queries.is_empty() {
        deadline.check();
        server.put(&batch, "a.log", format!("E_FAIL {}\n", uuid::Uuid::new_v4())).await;
        server.get(&format!("/batches/{batch}/report")).await;
        server.get("/fleet/codes?group_by=firmware").await;
        let mut open = BTreeSet::new();
        for query in &queries {
            if prometheus.query(query).await.is_none_or(|rows| rows.is_empty()) {
                open.insert(query.clone());
            }
        }
        if open.len() < queries.len() {
            eprintln!("waiting for {open:?}");
        }
        queries = open;
    }
    for expression in expressions {
        assert!(prometheus.query(expression).await.is_some(), "{expression}");
    }
    server.stop();
}

#[tokio::test]
async fn a_request_id_is_in_the_answer_and_in_the_log() {
    let data = TempDir::new().expect("a folder");
    let server = Server::start(data.path());
    let client = reqwest::Client::new();
    let answer = client.get(server.root_url("/healthz")).header("x-request-id", "abc-7").send().await.expect("answers");
    assert_eq!(answer.headers()["x-request-id"], "abc-7");
    let batch = server.new_batch().await;
    let report = server.url(&format!("/batches/{batch}/report"));
    for _ in 0..2 {
        let answer = client.get(&report).header("x-request-id", "abc-8").send().await.expect("answers");
        assert_eq!(answer.headers()["x-request-id"], "abc-8", "also of a cached answer");
    }
    let answer = client.get(server.root_url("/no/such/path")).send().await.expect("answers");
    assert_eq!(answer.status(), reqwest::StatusCode::NOT_FOUND);
    assert!(!answer.headers()["x-request-id"].is_empty());
    let metrics = client.get(server.root_url("/metrics")).send().await.expect("answers").text().await.expect("text");
    assert!(
        metrics.contains("argus_http_requests_total{method=\"GET\",route=\"/healthz\",status=\"200\"} 1"),
        "{metrics}"
    );
    assert!(!metrics.contains(&batch), "no id is a label");
    // Each family has its description.
    let described: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    for family in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(described.contains(family), "{family} has no description");
    }
}
