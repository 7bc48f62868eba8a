//! An HTTP/1.1 client with low overhead: one blocking connection, no thread, files sent with `sendfile`.
//!
//! It shares the cores with the measured server, and supports only the responses that Argus sends.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Time limit for a response and for a commit.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How often the committed epoch is polled.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// A persistent connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
    address: String,
}

impl Connection {
    /// Connects.
    pub fn open(address: &str) -> Result<Connection> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Connection { stream: BufReader::with_capacity(64 << 10, stream), address: address.to_owned() })
    }

    /// Gets JSON.
    pub fn get(&mut self, path: &str) -> Result<Value> {
        self.send("GET", path, b"")?.json()
    }

    /// Posts JSON and gets JSON.
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send("POST", path, &body)?.json()
    }

    /// Sends a request and its body in one write; fails unless the status is 2xx.
    pub fn send(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Response> {
        let mut request = self.head(method, path, body.len() as u64);
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)?;
        self.response(method, path)
    }

    /// Puts a file; the kernel sends its bytes from the page cache.
    pub fn put_file(&mut self, path: &str, file: &Path) -> Result<Value> {
        let mut file = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        let head = self.head("PUT", path, file.metadata()?.len());
        let stream = self.stream.get_mut();
        stream.write_all(&head)?;
        std::io::copy(&mut file, stream)?;
        self.response("PUT", path)?.json()
    }

    /// Creates a batch; returns its id.
    pub fn new_batch(&mut self, vehicle: usize, firmware: &str) -> Result<String> {
        let vin = format!("WVWZZZ1JZXW{vehicle:06}");
        let new = json!({"vehicle_id": format!("bench-{vehicle}"), "vin": vin, "firmware": firmware});
        let batch = self.post("/api/v1/batches", &new)?;
        Ok(batch["id"].as_str().context("the created batch has no id")?.to_owned())
    }

    /// Completes a batch; returns the epoch.
    pub fn complete(&mut self, batch: &str) -> Result<u64> {
        let done = self.post(&format!("/api/v1/batches/{batch}/complete"), &Value::Null)?;
        done["epoch"].as_u64().context("the completed batch has no epoch")
    }

    /// Gets a report at `epoch` or later.
    pub fn report_at(&mut self, batch: &str, epoch: u64) -> Result<Value> {
        self.get(&format!("/api/v1/batches/{batch}/report?min_epoch={epoch}&timeout_ms=60000"))
    }

    /// A metric of the server, by its name with its labels.
    pub fn metric(&mut self, name: &str) -> Result<f64> {
        let text = String::from_utf8(self.send("GET", "/metrics", b"")?.body)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("/metrics has no metric {name}"))?.trim().parse()?)
    }

    /// Waits until the changes up to an epoch are committed to the tables.
    pub fn wait_committed(&mut self, epoch: u64) -> Result<()> {
        let begun = Instant::now();
        while self.metric("argus_committed_epoch")? < epoch as f64 {
            ensure!(begun.elapsed() < TIMEOUT, "epoch {epoch} was not committed within {} s", TIMEOUT.as_secs());
            std::thread::sleep(POLL_EVERY);
        }
        Ok(())
    }

    fn head(&self, method: &str, path: &str, bytes: u64) -> Vec<u8> {
        let address = &self.address;
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
        )
        .into_bytes()
    }

    fn response(&mut self, method: &str, path: &str) -> Result<Response> {
        let response = Response::read(&mut self.stream)?;
        if !(200..300).contains(&response.status) {
            bail!("{method} {path} failed with {}: {}", response.status, String::from_utf8_lossy(&response.body));
        }
        Ok(response)
    }
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    fn read(stream: &mut impl BufRead) -> Result<Response> {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status =
            line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the response is not HTTP")?;
        let mut bytes = (status == 204).then_some(0);
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                bytes = Some(value.trim().parse::<usize>()?);
            }
        }
        let mut body = vec![0; bytes.context("the response has no content-length")?];
        stream.read_exact(&mut body)?;
        Ok(Response { status, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_responses_are_read_from_one_connection() {
        let mut stream: &[u8] =
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx: y\r\n\r\n{}HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(Response::read(&mut stream).expect("reads"), Response { status: 200, body: b"{}".to_vec() });
        assert_eq!(Response::read(&mut stream).expect("reads"), Response { status: 204, body: Vec::new() });
        assert!(Response::read(&mut stream).is_err());
    }
}
