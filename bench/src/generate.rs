//! Generates logs with known counts; the same seed generates the same log.
//!
//! A line has about 110 bytes, and one line in twenty has codes. Some lines end in
//! CRLF, some are long, some are not UTF-8.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::truth::Truth;

/// The upload time of generated logs, just after the times on their lines: 2026-11-26T12:00:00Z.
pub const UPLOADED_AT: i64 = 1_795_694_400_000_000;

/// Pseudo-random numbers (splitmix64, by Sebastiano Vigna).
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// A random element.
    pub fn pick<'a, T>(&mut self, some: &'a [T]) -> &'a T {
        &some[self.below(some.len() as u64) as usize]
    }
}

/// The message of a line with codes, the codes, and the matches of the simple pattern.
const CODED: [(&str, &[&str], &[&str]); 12] = [
    ("DTC P0A1F-87 stored, battery pack voltage sense circuit", &["P0A1F-87"], &["P0A1F-87"]),
    ("DTC U0100-00 confirmed, lost communication with the engine control module", &["U0100-00"], &["U0100-00"]),
    ("negative response 7F 31 22 to the start of the erase routine", &["NRC:31-22"], &["7F 31 22"]),
    ("negative response 7F 36 73, wrong block sequence counter", &["NRC:36-73"], &["7F 36 73"]),
    ("install of slot B failed with E_SIGNATURE_INVALID", &["E_SIGNATURE_INVALID"], &["E_SIGNATURE_INVALID"]),
    ("download failed: errno: 110 (ETIMEDOUT)", &["ERRNO:110", "ETIMEDOUT"], &["errno: 110", "ETIMEDOUT"]),
    ("manifest fetch answered HTTP/1.1 503 from the backend", &["HTTP:503"], &["HTTP/1.1 503"]),
    ("update engine exited with code 7", &["EXIT:7"], &["exited with code 7"]),
    ("SPN 91 FMI 3, accelerator pedal position", &["SPN91-FMI3"], &["SPN 91 FMI 3"]),
    ("flash driver hit SIGSEGV, core written", &["SIGSEGV"], &["SIGSEGV"]),
    ("write of partition failed rc=-28", &["ERR:-28"], &["rc=-28"]),
    ("fault OTA-1042 while switching slots", &["OTA-1042"], &["OTA-1042"]),
];

const PLAIN: [&str; 8] = [
    "wrote block to slot B and verified its checksum against the manifest, all good so far",
    "heartbeat from the gateway, queue is empty, nothing to send to the backend at this time",
    "battery at a good level, contactors closed, no reason to postpone the installation now",
    "received frame on the bus from the body controller, payload taken over into the shadow",
    "download goes on, the link is slow but steady, the chunk was taken over into the store",
    "vehicle is parked and locked, the driver consented, the update can begin any time soon",
    "memory and disk are well within their limits, no need for any clean-up before the start",
    "time synchronised with the backend, the drift since the last time was below the limit",
];

const COMPONENTS: [&str; 6] = ["ota.Download", "ota.Flash", "bms.Monitor", "gateway.Router", "ecu.Diag", "ota.Verify"];

/// Writes about `bytes` bytes of log and returns the expected counts. Of 1,000
/// lines about `coded_per_mille` have codes, with messages chosen from `kinds`.
pub fn write_log(
    out: &mut dyn Write,
    bytes: u64,
    random: &mut Random,
    coded_per_mille: u64,
    kinds: &[usize],
) -> io::Result<Truth> {
    let mut truth = Truth::default();
    let mut seconds = random.below(3600);
    let mut line = Vec::with_capacity(256);
    while truth.bytes < bytes {
        line.clear();
        seconds += random.below(2);
        let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let component = random.pick(&COMPONENTS);
        write!(line, "2026-03-01 {h:02}:{m:02}:{s:02},{:03} ", random.below(1000))?;
        if random.below(1000) < coded_per_mille {
            let (message, codes, simple) = CODED[*random.pick(kinds) % CODED.len()];
            write!(line, "ERROR [main] {component} - {message}")?;
            truth.error_lines += 1;
            for code in codes {
                *truth.codes.entry((*code).to_owned()).or_default() += 1;
            }
            for found in simple {
                *truth.simple.entry((*found).to_owned()).or_default() += 1;
            }
        } else {
            write!(line, "INFO [main] {component} - {}", random.pick(&PLAIN))?;
        }
        match random.below(1000) {
            0 => line.extend(std::iter::repeat_n(b'.', 4000)),
            1..20 => line.extend_from_slice(b" \xff\xfe"),
            _ => {}
        }
        line.extend_from_slice(if random.below(50) == 0 { b"\r\n" } else { b"\n" });
        out.write_all(&line)?;
        truth.bytes += line.len() as u64;
        truth.lines += 1;
    }
    out.flush()?;
    Ok(truth)
}

/// All kinds of lines with codes.
pub const ALL_KINDS: [usize; CODED.len()] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

/// Writes a default log: one line in twenty has codes.
pub fn default_log(path: &Path, bytes: u64, seed: u64) -> Result<Truth> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(write_log(&mut BufWriter::with_capacity(1 << 20, file), bytes, &mut Random::new(seed), 50, &ALL_KINDS)?)
}

/// Flags of `argus-bench generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The output file.
    file: PathBuf,
    /// Approximate bytes.
    #[arg(long, default_value_t = 64 << 20)]
    bytes: u64,
    /// The same seed generates the same log.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Writes a log, and its expected counts to a second file.
pub fn run(args: &Args) -> Result<()> {
    let truth = default_log(&args.file, args.bytes, args.seed)?;
    let mut truth_file = args.file.as_os_str().to_owned();
    truth_file.push(".truth.json");
    let text = json!({
        "bytes": truth.bytes, "lines": truth.lines, "error_lines": truth.error_lines, "codes": truth.codes,
        "simple": truth.simple,
    });
    std::fs::write(&truth_file, format!("{text:#}\n"))?;
    Ok(())
}

/// Default logs in one folder.
pub struct Logs {
    /// The files and their expected counts.
    pub files: Vec<(PathBuf, Truth)>,
}

impl Logs {
    /// Writes `count` logs of `bytes` each into a folder and syncs them, so that no write-back disturbs a
    /// measurement. Afterwards they are in the page cache.
    pub fn write(folder: &Path, count: usize, bytes: u64) -> Result<Logs> {
        let mut files = Vec::with_capacity(count);
        for number in 0..count {
            let path = folder.join(format!("{number}.log"));
            let truth = default_log(&path, bytes, 1 + number as u64)?;
            File::open(&path)?.sync_all()?;
            files.push((path, truth));
        }
        Ok(Logs { files })
    }

    /// The paths.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The expected counts of all logs.
    pub fn truth(&self) -> Truth {
        self.files.iter().map(|(_, truth)| truth).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simple;
    use argus_dataflow::counts::partial::{CodeLimits, PartialCounts};
    use argus_dataflow::scan::Scanner;
    use argus_dataflow::{BlockReader, RuleSet};

    /// The counts of a log by these rules; `simple` stays empty.
    fn counted(log: &[u8], rules: RuleSet) -> Truth {
        let mut scanner = Scanner::new(rules);
        let mut blocks = BlockReader::new(log, 64 << 10);
        let mut partial = PartialCounts::default();
        while let Some(block) = blocks.next_block().expect("reads") {
            partial.merge(scanner.scan(&block, UPLOADED_AT).0, CodeLimits::default());
        }
        let mut counted = Truth {
            bytes: blocks.bytes(),
            lines: blocks.lines(),
            error_lines: partial.error_lines,
            ..Truth::default()
        };
        partial.codes.into_iter().for_each(|(key, seen)| *counted.codes.entry(key.code).or_default() += seen.count);
        counted
    }

    fn log() -> (Vec<u8>, Truth) {
        let mut log = Vec::new();
        let truth = write_log(&mut log, 1 << 20, &mut Random::new(7), 50, &ALL_KINDS).expect("writes to memory");
        (log, truth)
    }

    #[test]
    fn the_built_in_rules_find_the_expected_counts() {
        let (log, mut truth) = log();
        truth.simple.clear();
        assert_eq!(counted(&log, RuleSet::built_in().expect("the built-in rules are valid")), truth);
    }

    #[test]
    fn the_simple_pattern_finds_the_expected_counts() {
        let (log, mut truth) = log();
        truth.codes = std::mem::take(&mut truth.simple);
        assert_eq!(counted(&log, RuleSet::parse(&[&simple::rule_file()]).expect("the rule file is valid")), truth);
    }
}
