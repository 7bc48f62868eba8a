//! An HTTP/1.1 client that costs next to nothing: one blocking connection, no thread, files by `sendfile`.
//!
//! It shares the cores with what it measures, and understands only what Argus says to it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A server that says nothing for this long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// How often the server is asked whether it is at rest.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A connection that stays open.
pub struct Connection {
    stream: BufReader<TcpStream>,
    address: String,
}

impl Connection {
    /// Connects.
    pub fn open(address: &str) -> Result<Connection> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
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

    /// Sends a request with its body in one packet, if it fits; fails unless the answer is a success.
    pub fn send(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        let mut request = self.head(method, path, body.len() as u64);
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)?;
        self.answer(method, path)
    }

    /// Puts a file, whose bytes the kernel sends from its cache.
    pub fn put_file(&mut self, path: &str, file: &Path) -> Result<Value> {
        let mut file = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        let head = self.head("PUT", path, file.metadata()?.len());
        let stream = self.stream.get_mut();
        stream.write_all(&head)?;
        std::io::copy(&mut file, stream)?;
        self.answer("PUT", path)?.json()
    }

    /// Makes a batch; says its id.
    pub fn new_batch(&mut self, vehicle: usize, firmware: &str) -> Result<String> {
        let vin = format!("WVWZZZ1JZXW{vehicle:06}");
        let new = json!({"vehicle_id": format!("bench-{vehicle}"), "vin": vin, "firmware": firmware});
        let batch = self.post("/api/v1/batches", &new)?;
        Ok(batch["id"].as_str().context("a batch has an id")?.to_owned())
    }

    /// Completes a batch; says the epoch.
    pub fn complete(&mut self, batch: &str) -> Result<u64> {
        let done = self.post(&format!("/api/v1/batches/{batch}/complete"), &Value::Null)?;
        done["epoch"].as_u64().context("a completed batch has an epoch")
    }

    /// Waits for a report that covers an epoch.
    pub fn report_at(&mut self, batch: &str, epoch: u64) -> Result<Value> {
        self.get(&format!("/api/v1/batches/{batch}/report?min_epoch={epoch}&timeout_ms=60000"))
    }

    /// One of the server's figures, under its name with its labels.
    pub fn figure(&mut self, name: &str) -> Result<f64> {
        let text = String::from_utf8(self.send("GET", "/metrics", b"")?.body)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("there is no figure {name}"))?.trim().parse()?)
    }

    /// Waits until what was changed up to an epoch is in the tables, and the server at rest.
    pub fn wait_committed(&mut self, epoch: u64) -> Result<()> {
        let begun = Instant::now();
        while self.figure("argus_committed_epoch")? < epoch as f64 {
            ensure!(begun.elapsed() < SILENCE_MAX, "epoch {epoch} is not committed");
            std::thread::sleep(LOOK_EVERY);
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

    fn answer(&mut self, method: &str, path: &str) -> Result<Answer> {
        let answer = Answer::read(&mut self.stream)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path} was answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(answer)
    }
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    fn read(stream: &mut impl BufRead) -> Result<Answer> {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("not an answer in HTTP")?;
        let mut bytes = (status == 204).then_some(0);
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                bytes = Some(value.trim().parse::<usize>()?);
            }
        }
        let mut body = vec![0; bytes.context("an answer without a content-length")?];
        stream.read_exact(&mut body)?;
        Ok(Answer { status, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_follow_one_another_on_a_connection() {
        let mut stream: &[u8] =
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx: y\r\n\r\n{}HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(Answer::read(&mut stream).expect("reads"), Answer { status: 200, body: b"{}".to_vec() });
        assert_eq!(Answer::read(&mut stream).expect("reads"), Answer { status: 204, body: Vec::new() });
        assert!(Answer::read(&mut stream).is_err());
    }
}
