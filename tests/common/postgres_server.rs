//! A PostgreSQL server for one test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A running PostgreSQL; stopped when dropped.
pub struct PostgresServer {
    port: u16,
    folder: tempfile::TempDir,
}

impl PostgresServer {
    /// Creates a cluster, and starts it on a free port.
    pub fn start() -> PostgresServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let server = PostgresServer { port, folder };
        // The server refuses to run as root.
        run(Command::new("chown").arg("-R").arg("postgres").arg(server.folder.path()));
        run(as_postgres(&program("initdb")).arg("-D").arg(server.data()).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
        ]));
        server.launch();
        server
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn launch(&self) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={}",
            self.port,
            self.folder.path().display()
        );
        run(as_postgres(&program("pg_ctl"))
            .arg("-D")
            .arg(self.data())
            .args(["-w", "-t", "60", "-l"])
            .arg(self.folder.path().join("log"))
            .args(["-o", &options, "start"]));
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of its database.
    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// The same through a proxy.
    pub fn url_at(&self, port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }

    /// The first column of the first row of a query.
    pub fn ask(&self, sql: &str) -> String {
        let output = Command::new("psql").args(["-X", "-A", "-t", "-c", sql, &self.url()]).output().expect("psql runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ends all its processes as `kill -9` does, and starts it again.
    pub fn crash(&self) {
        run(as_postgres(&program("pg_ctl")).arg("-D").arg(self.data()).args(["-w", "-m", "immediate", "stop"]));
        self.launch();
    }

    /// Suspends (`-STOP`) or resumes (`-CONT`) all its processes.
    pub fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.data().join("postmaster.pid")).expect("it runs");
        let pid = pid.lines().next().expect("its process id").to_owned();
        let mut children = Command::new("pgrep");
        let children = children.args(["-P", &pid]).output().expect("pgrep runs");
        let children = String::from_utf8_lossy(&children.stdout).into_owned();
        for pid in children.split_whitespace().chain([pid.as_str()]) {
            // A connection may have ended meanwhile.
            let _ = Command::new("kill").args([signal, pid]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let mut stop = as_postgres(&program("pg_ctl"));
        let _ = stop.arg("-D").arg(self.data()).args(["-m", "immediate", "stop"]).stdout(Stdio::null()).status();
    }
}

/// A program of the newest installed version.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("the package postgresql is installed");
    let newest = versions.flatten().map(|entry| entry.path()).max().expect("a version of PostgreSQL");
    newest.join("bin").join(name)
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
