//! The peak resident memory of processes (`VmHWM` of the Linux kernel).

use std::collections::HashMap;
use std::fs::{read_dir, read_to_string};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The kernel reports the peak until the process exits; a peak after the last poll
/// is missed.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// Watches processes on its own thread.
pub struct Peak {
    stop: Arc<AtomicBool>,
    watcher: JoinHandle<u64>,
}

impl Peak {
    /// Watches one process.
    pub fn of(process: u32) -> Peak {
        Peak::watch(move || vec![process])
    }

    /// Watches all descendants of a process, but not the process itself.
    pub fn of_children(process: u32) -> Peak {
        Peak::watch(move || {
            let mut found = vec![process];
            let mut next = 0;
            while let Some(parent) = found.get(next).copied() {
                found.extend(children(parent));
                next += 1;
            }
            found.split_off(1)
        })
    }

    fn watch(processes: impl Fn() -> Vec<u32> + Send + 'static) -> Peak {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watcher = std::thread::spawn(move || {
            let mut peaks: HashMap<u32, u64> = HashMap::new();
            loop {
                let last = stopped.load(Ordering::Relaxed);
                for process in processes() {
                    if let Some(bytes) = peak(process) {
                        peaks.insert(process, bytes);
                    }
                }
                if last {
                    return peaks.values().sum();
                }
                std::thread::sleep(POLL_EVERY);
            }
        });
        Peak { stop, watcher }
    }

    /// The sum of the peaks in bytes.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.watcher.join().unwrap_or_default()
    }
}

/// The running child processes of all threads of a process.
fn children(process: u32) -> Vec<u32> {
    // A process that has exited has no children.
    let Ok(threads) = read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// The peak of a running process in bytes.
fn peak(process: u32) -> Option<u64> {
    let status = read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn all_descendants_are_watched() {
        let mut shell = Command::new("sh")
            .args(["-c", "sh -c 'cat; :'; :"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let peak = Peak::of_children(shell.id());
        // When the innermost process echoes a line, all of them run.
        let mut input = shell.stdin.take().expect("piped");
        std::io::Write::write_all(&mut input, b"here\n").expect("writes");
        let mut line = String::new();
        let mut output = std::io::BufReader::new(shell.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut output, &mut line).expect("reads");
        let bytes = peak.stop();
        drop(input);
        shell.wait().expect("ends");
        assert!(bytes > 2 * 100_000, "{bytes} bytes are too few for two processes");
    }
}
