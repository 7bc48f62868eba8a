//! A Redis server for one test.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A running Redis; killed when dropped.
pub struct RedisServer {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl RedisServer {
    /// Starts on a free port; returns when it responds.
    pub fn start() -> RedisServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut redis = RedisServer { child: RedisServer::spawn(port, &folder), port, folder };
        redis.wait();
        redis
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it and starts it again, empty.
    pub fn restart(&mut self) {
        self.child.kill().expect("it is there");
        self.child.wait().expect("it ends");
        self.child = RedisServer::spawn(self.port, &self.folder);
        self.wait();
    }

    /// Suspends it: it accepts connections and does not respond.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Resumes it.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Changes the value of every key; returns the number of keys.
    pub fn corrupt(&self) -> usize {
        let keys = self.ask(&["KEYS", "argus:*"]);
        let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
        for key in &keys {
            self.ask(&["SETRANGE", key, "40", "lies"]);
        }
        // A well-formed value under another key.
        if let [first, .., last] = keys[..] {
            self.ask(&["COPY", first, last, "REPLACE"]);
        }
        keys.len()
    }

    fn ask(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(command).output().expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn spawn(port: u16, folder: &tempfile::TempDir) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts")
    }

    fn wait(&mut self) {
        let deadline = super::Deadline::new("redis-server");
        while self.ask(&["PING"]).trim() != "PONG" {
            assert!(self.child.try_wait().expect("it can be waited for").is_none(), "redis-server ended");
            deadline.check();
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // SIGKILL also ends a suspended process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
