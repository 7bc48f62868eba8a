//! How much memory the largest file takes: `argus analyze` and an upload.

use std::io::{BufRead, BufReader, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use reqwest::{Body, Client};
use serde_json::{Value, json};

use crate::generate::{Truth, usual_log};

/// Generates a log, has both read it, checks the counts and prints the peaks.
pub async fn run(bytes: u64, workers: u16) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("large.log");
    let truth = usual_log(&log, bytes, 1)?;
    let argus = argus_binary()?;
    let (peak, seconds) = analyze(&argus, &log, workers, &truth)?;
    print("argus analyze", peak, seconds, truth.bytes)?;
    let (peak, seconds) = upload(&argus, &log, folder.path(), workers, &truth).await?;
    print("argus serve, one upload", peak, seconds, truth.bytes)
}

fn print(what: &str, peak: u64, seconds: f64, bytes: u64) -> Result<()> {
    let rate = bytes as f64 / 1e6 / seconds;
    writeln!(stdout(), "{what:<24}  peak {:>4} MiB  {seconds:>6.1} s  {rate:>6.0} MB/s", peak >> 20)?;
    Ok(())
}

/// The `argus` that was built beside this program.
fn argus_binary() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("argus");
    if !beside.is_file() {
        bail!("build argus first, with the same profile: cargo build --release --workspace");
    }
    Ok(beside)
}

fn analyze(argus: &Path, log: &Path, workers: u16, truth: &Truth) -> Result<(u64, f64)> {
    let begun = Instant::now();
    let mut child = Command::new(argus)
        .args(["analyze", "--format", "json", "--workers", &workers.to_string()])
        .arg(log)
        .stdout(Stdio::piped())
        .spawn()?;
    let peak = Peak::watch(&child);
    let report: Value = serde_json::from_reader(child.stdout.take().context("the output is piped")?)?;
    let seconds = begun.elapsed().as_secs_f64();
    child.wait()?;
    check(&report, truth)?;
    Ok((peak.stop(), seconds))
}

async fn upload(argus: &Path, log: &Path, folder: &Path, workers: u16, truth: &Truth) -> Result<(u64, f64)> {
    let mut child = Command::new(argus)
        .args(["serve", "--listen", "127.0.0.1:0", "--workers", &workers.to_string(), "--data"])
        .arg(folder.join("data"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut first = String::new();
    BufReader::new(child.stdout.take().context("the output is piped")?).read_line(&mut first)?;
    let base = first.trim().strip_prefix("argus listening on ").context("argus says where it listens")?;
    let api = format!("{base}/api/v1/batches");
    let peak = Peak::watch(&child);
    let begun = Instant::now();
    let client = Client::new();
    let new = json!({"vehicle_id": "bench", "vin": "WVWZZZ1JZXW000001"});
    let batch: Value = client.post(&api).json(&new).send().await?.error_for_status()?.json().await?;
    let id = batch["id"].as_str().context("a batch has an id")?;
    let body = Body::wrap_stream(chunks(log)?);
    client.put(format!("{api}/{id}/files/large.log")).body(body).send().await?.error_for_status()?;
    let done: Value = client.post(format!("{api}/{id}/complete")).send().await?.error_for_status()?.json().await?;
    let wanted = format!("{api}/{id}/report?min_epoch={}&timeout_ms=60000", done["epoch"]);
    let report: Value = client.get(wanted).send().await?.error_for_status()?.json().await?;
    let seconds = begun.elapsed().as_secs_f64();
    check(&report, truth)?;
    // Reading all of it once more, sorted, is the most that one reader can ask for.
    client.get(format!("{api}/{id}/errors?limit=1000")).send().await?.error_for_status()?.bytes().await?;
    let peak = peak.stop();
    child.kill()?;
    child.wait()?;
    Ok((peak, seconds))
}

/// A file in chunks, read on a thread of its own.
fn chunks(log: &Path) -> Result<impl futures::Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static> {
    let file = std::fs::File::open(log)?;
    Ok(futures::stream::unfold(file, |mut file| async move {
        let mut chunk = vec![0; 256 << 10];
        match tokio::task::block_in_place(|| std::io::Read::read(&mut file, &mut chunk)) {
            Ok(0) => None,
            Ok(count) => {
                chunk.truncate(count);
                Some((Ok(chunk), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    }))
}

fn check(report: &Value, truth: &Truth) -> Result<()> {
    let counted = (&report["total_bytes"], &report["total_lines"], &report["error_lines"]);
    if counted != (&json!(truth.bytes), &json!(truth.lines), &json!(truth.error_lines)) {
        bail!("counted {counted:?}, and the truth is {truth:?}");
    }
    let codes = report["codes"].as_array().context("a report has codes")?;
    let wrong = codes.iter().find(|code| {
        let name = code["code"].as_str().unwrap_or_default();
        code["count"].as_u64() != truth.codes.get(name).copied()
    });
    match wrong {
        Some(code) => bail!("counted {code}, and the truth is {truth:?}"),
        None if codes.len() != truth.codes.len() => bail!("{} codes of {}", codes.len(), truth.codes.len()),
        None => Ok(()),
    }
}

/// Watches the peak memory of a process: what the kernel calls `VmHWM`.
struct Peak {
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: std::thread::JoinHandle<()>,
}

impl Peak {
    fn watch(child: &Child) -> Peak {
        let status = format!("/proc/{}/status", child.id());
        let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let watcher = std::thread::spawn({
            let (bytes, stop) = (Arc::clone(&bytes), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let text = std::fs::read_to_string(&status).unwrap_or_default();
                    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
                    bytes.fetch_max(kib.unwrap_or(0) << 10, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Peak { bytes, stop, watcher }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // A watcher that died has seen what it has seen.
        let _ = self.watcher.join();
        self.bytes.load(Ordering::Relaxed)
    }
}
