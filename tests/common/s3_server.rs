//! An S3 server (SeaweedFS) for one test.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::python;

/// The keys that it accepts.
const KEYS: (&str, &str) = ("argus", "argus-secret");

/// Starts on other ports before a test fails.
const STARTS_MAX: usize = 5;

/// A running SeaweedFS; killed when dropped.
pub struct S3Server {
    child: Child,
    ports: [u16; 4],
    folder: tempfile::TempDir,
}

impl S3Server {
    /// Starts it on free ports, with an empty bucket `argus`.
    pub fn start() -> S3Server {
        // Another process may have taken a port before it could.
        (0..STARTS_MAX).find_map(|_| S3Server::try_start()).expect("weed starts, on one of several sets of ports")
    }

    fn try_start() -> Option<S3Server> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = format!(
            r#"{{"identities":[{{"name":"argus","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#,
            KEYS.0, KEYS.1
        );
        std::fs::write(folder.path().join("s3.json"), config).expect("writes");
        let ports = free_ports();
        let mut server = S3Server { child: S3Server::spawn(&folder, ports), ports, folder };
        server.is_up().then_some(server)
    }

    fn spawn(folder: &tempfile::TempDir, [master, volume, filer, s3]: [u16; 4]) -> Child {
        Command::new(python::weed())
            .arg("server")
            .arg(format!("-dir={}", folder.path().display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-volume.max=20"])
            // Its other services have fixed ports.
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-iam=false"])
            .arg("-master.volumeSizeLimitMB=64")
            .arg(format!("-master.port={master}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-s3.config={}", folder.path().join("s3.json").display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("weed starts")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.ports[3]
    }

    /// The variables with which a client finds it.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        self.variables_at(self.port())
    }

    /// The same through a proxy.
    pub fn variables_at(&self, port: u16) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", KEYS.0.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEYS.1.to_owned()),
        ]
    }

    /// Kills it and starts it again; it keeps what it had.
    pub fn crash(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        self.child = S3Server::spawn(&self.folder, self.ports);
        self.wait();
    }

    /// The number of its unfinished multipart uploads, which its filer has as folders.
    pub fn unfinished_uploads(&self) -> usize {
        let url = format!("http://127.0.0.1:{}/buckets/argus/.uploads/", self.ports[2]);
        let answer = Command::new("curl").args(["-s", "-H", "Accept: application/json", &url]).output();
        let answer = answer.expect("curl runs").stdout;
        let listed: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        listed["Entries"].as_array().map_or(0, Vec::len)
    }

    /// Suspends (`-STOP`) or resumes (`-CONT`) it.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits until it has the bucket.
    fn wait(&mut self) {
        assert!(self.is_up(), "weed ended");
    }

    /// The same; `false` if it ends before.
    fn is_up(&mut self) -> bool {
        let deadline = super::Deadline::new("the S3 server");
        // A folder of the filer is a bucket.
        let bucket = format!("http://127.0.0.1:{}/buckets/argus/", self.ports[2]);
        let create = ["-s", "-X", "POST", &bucket];
        let see = ["-s", "-f", "-o", "/dev/null", &bucket];
        let s3 = format!("http://127.0.0.1:{}/", self.ports[3]);
        let answers = ["-s", "-o", "/dev/null", &s3];
        loop {
            deadline.check();
            if self.child.try_wait().expect("it can be waited for").is_some() {
                return false;
            }
            let succeeds =
                |arguments: &[&str]| Command::new("curl").args(arguments).output().expect("curl runs").status.success();
            if succeeds(&create) && succeeds(&see) && succeeds(&answers) {
                return true;
            }
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Free ports, whose numbers plus 10,000 are free too: each service of SeaweedFS takes both.
fn free_ports() -> [u16; 4] {
    // All are bound until all are known, so that they differ.
    let mut bound = Vec::new();
    [(); 4].map(|()| {
        loop {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            // Ephemeral ports begin at 32768, and the greater one must be a port too.
            let port = 10_000 + listener.local_addr().expect("an address").port() % 20_000;
            let second = TcpListener::bind(("127.0.0.1", port + 10_000));
            if let (Ok(first), Ok(second)) = (TcpListener::bind(("127.0.0.1", port)), second) {
                bound.extend([first, second]);
                return port;
            }
        }
    })
}
