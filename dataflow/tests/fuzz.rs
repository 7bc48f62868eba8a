//! The scan equals the plain loop on fuzzed rules and on fuzzed lines.
//!
//! Each target runs `ARGUS_FUZZ_RUNS` times, from the seed that is printed first or is
//! given in `ARGUS_FUZZ_SEED`.

use argus_dataflow::rules::reference::codes_of_line;
use argus_dataflow::scan::Scanner;
use argus_dataflow::{BlockReader, RuleSet};

/// Runs of each target, unless `ARGUS_FUZZ_RUNS` is set.
const RUNS: u64 = 2_000;

/// When the texts were uploaded: 2026-11-26T12:00:00Z.
const UPLOADED_AT: i64 = 1_795_694_400_000_000;

/// A stream of numbers that looks random (splitmix64, by Sebastiano Vigna).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, some: &[&'a T]) -> &'a T {
        some[self.below(some.len())]
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn runs() -> u64 {
    variable("ARGUS_FUZZ_RUNS").unwrap_or(RUNS)
}

/// Calls `target` with one seed after another. The first seed is printed, so that a run can be repeated.
fn fuzz(target: impl Fn(&mut Random)) {
    let first = variable("ARGUS_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32);
    eprintln!("{} runs from seed {first}", runs());
    for seed in first..first.saturating_add(runs()) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&mut Random(seed))));
        if let Err(panic) = outcome {
            eprintln!("failed with seed {seed}; ARGUS_FUZZ_SEED={seed} ARGUS_FUZZ_RUNS=1 repeats it");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Checks that the scan finds what the plain loop finds in a text; returns the number of occurrences.
fn check(rules: &RuleSet, scanner: &mut Scanner, text: &[u8], block_bytes: usize, about: &str) -> usize {
    let mut expected: Vec<(u64, String)> = Vec::new();
    for (line, number) in text.split_inclusive(|&byte| byte == b'\n').zip(1..) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        let found = codes_of_line(rules, line.strip_suffix(b"\r").unwrap_or(line));
        expected.extend(found.into_iter().map(|found| (number, found.code)));
    }
    let mut blocks = BlockReader::new(text, block_bytes);
    let mut seen = Vec::new();
    while let Some(block) = blocks.next_block().expect("memory reads") {
        let (_, occurrences) = scanner.scan(&block, UPLOADED_AT);
        seen.extend(occurrences.into_iter().map(|occurrence| (occurrence.line, occurrence.code.to_string())));
    }
    assert_eq!(seen, expected, "{about}\nin {}", text.escape_ascii());
    expected.len()
}

/// Appends endings of lines of the text after other beginnings.
fn repeat_endings(random: &mut Random, text: &mut Vec<u8>) {
    let lines: Vec<Vec<u8>> = text.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..random.below(1 + lines.len()) {
        let line = &lines[random.below(lines.len())];
        if text.last().is_some_and(|&byte| byte != b'\n') {
            text.push(b'\n');
        }
        text.extend_from_slice(random.pick(&["", " ", "10:15:31 ", "x", "err", "error code: ", "ABC_"]).as_bytes());
        text.extend_from_slice(&line[random.below(line.len().min(40))..]);
    }
}

const WORDS: [&str; 18] =
    ["err", "error", "ERR", "E_", "code", "0x", "fail", "a", "b", " ", "_", ":", "=", "-", "7F", "status", "\t", "é"];
const CLASSES: [(&str, &str); 9] = [
    ("[0-9]", "0179"),
    ("[A-Z]", "AEFZ"),
    ("[a-z_]", "aefz_"),
    (r"\s", " \t"),
    (r"\w", "a_9Z"),
    (".", "a -0é"),
    ("[^0-9]", "a -"),
    (r"[^()\n]", "a0-"),
    ("[pPbB]", "pPbB"),
];

/// Grows a pattern, and with it a text that the pattern may match.
fn grow(random: &mut Random, depth: usize, pattern: &mut String, sample: &mut String) {
    for _ in 0..1 + random.below(3) {
        match random.below(if depth > 2 { 7 } else { 11 }) {
            0..=2 => {
                let word = random.pick(&WORDS);
                pattern.push_str(word);
                sample.push_str(word);
            }
            3 | 4 => {
                let (class, bytes) = CLASSES[random.below(CLASSES.len())];
                let (quantifier, least, most) = [
                    ("", 1, 1),
                    ("?", 0, 1),
                    ("*", 0, 3),
                    ("+", 1, 3),
                    ("{1,3}", 1, 3),
                    ("{2}", 2, 2),
                    ("{0,9}", 0, 9),
                ][random.below(7)];
                pattern.push_str(class);
                pattern.push_str(quantifier);
                for _ in 0..least + random.below(most - least + 1) {
                    let letters: Vec<char> = bytes.chars().collect();
                    sample.push(letters[random.below(letters.len())]);
                }
            }
            5 => pattern.push_str(random.pick(&[r"\b", r"\b", "^", "$", r"\B"])),
            6 => {
                let word = random.pick(&["err", "Fail", "code"]);
                pattern.push_str(&format!("(?i:{word})"));
                sample.push_str(&if random.one_in(2) { word.to_uppercase() } else { word.to_lowercase() });
            }
            7 | 8 => {
                let (mut one, mut other) = (String::new(), String::new());
                let (mut sample_one, mut sample_other) = (String::new(), String::new());
                grow(random, depth + 1, &mut one, &mut sample_one);
                grow(random, depth + 1, &mut other, &mut sample_other);
                pattern.push_str(&format!("(?:{one}|{other})"));
                sample.push_str(if random.one_in(2) { &sample_one } else { &sample_other });
            }
            _ => {
                let (mut inner, mut text) = (String::new(), String::new());
                grow(random, depth + 1, &mut inner, &mut text);
                let quantifier = random.pick(&["?", "*", "+", "{1,2}", "{2}", "{2,3}"]);
                pattern.push_str(&format!("(?:{inner}){quantifier}"));
                (0..random.below(3)).for_each(|_| sample.push_str(&text));
            }
        }
    }
}

/// A rule file of some rules, and texts that they may match.
fn rule_file(random: &mut Random) -> (String, Vec<String>) {
    let mut file = String::new();
    let mut samples = Vec::new();
    for rule in 0..1 + random.below(3) {
        file.push_str(&format!("[[rule]]\nname = \"r{rule}\"\nform = \"{}\"\n", random.pick(&["asis", "upper"])));
        if random.one_in(4) {
            let require =
                random.pick(&["err|[0-9]", r"\berr|[0-9]\b", r"^(?:e|\s)|code\B", r"(?i)\b(?:err|fail)\b|-$"]);
            file.push_str(&format!("require = '{require}'\n"));
        }
        if random.one_in(4) {
            file.push_str("deny = '^.?$'\n");
        }
        file.push_str("patterns = [\n");
        for _ in 0..1 + random.below(3) {
            let (mut before, mut code, mut after, mut sample) = Default::default();
            if random.one_in(2) {
                grow(random, 1, &mut before, &mut sample);
            }
            grow(random, 1, &mut code, &mut sample);
            if random.one_in(2) {
                grow(random, 1, &mut after, &mut sample);
            }
            let symbol = if random.one_in(5) { "(?: (?P<sym>[A-Z_]+))?" } else { "" };
            file.push_str(&format!("  {{ pattern = '{before}(?P<code>{code}){after}{symbol}' }},\n"));
            samples.push(sample);
        }
        file.push_str("]\n");
    }
    (file, samples)
}

fn text(random: &mut Random, samples: &[String], pieces: usize) -> Vec<u8> {
    let mut text = Vec::new();
    if random.one_in(10) {
        text.extend_from_slice(b"\xef\xbb\xbf");
    }
    for _ in 0..random.below(pieces) {
        match random.below(10) {
            0..=3 => text.extend_from_slice(samples[random.below(samples.len())].as_bytes()),
            4..=6 => text.extend_from_slice(random.pick(&WORDS).as_bytes()),
            7 => text.extend_from_slice(random.pick(&["\n", "\r\n", "\r", "\n\n"]).as_bytes()),
            8 => text.push(random.below(256) as u8),
            _ => text.extend(std::iter::repeat_n(b'x', random.below(40))),
        }
    }
    text
}

#[test]
fn the_scan_with_fuzzed_rules_finds_what_the_plain_loop_finds() {
    fuzz(|random| {
        let (file, samples) = rule_file(random);
        let rules = RuleSet::parse(&[&file]).expect("the rules are valid");
        let mut scanner = Scanner::new(rules.clone());
        for _ in 0..20 {
            let mut text = text(random, &samples, 60);
            repeat_endings(random, &mut text);
            let block_bytes = [1, 7, 64, 4096][random.below(4)];
            check(&rules, &mut scanner, &text, block_bytes, &file);
        }
    });
}

const LINES: [&str; 30] = [
    "2026-03-01 10:15:30,123 ERROR [main] ota.Flash - DTC P0301-07 stored, errno: 5",
    "updater: fail rc=-110 (0x80070005) HRESULT",
    "E_FAIL and ABC_E_FAIL_SAFE and SIGSEGV",
    "Kernel panic - not syncing: BUG: x",
    "SPN 91 FMI 3 exited with code 7",
    "0x80073712 - ERROR_SXS_COMPONENT_STORE_CORRUPT failed",
    "\u{feff}ORA-00942 error",
    "java.io.IOException: error code 17",
    "status=404 rc=0 signal 15",
    "P0301 no code here",
    "can0 7E8 [8] 03 7F 22 31 00 00 00 00",
    "7E8#037F2231AAAA",
    "negative response 0x7F 0x31 0x22",
    "hr = 80070490, STATUS_OBJECT_NAME_NOT_FOUND",
    "ErrorCode::kDownloadTransferError(9) org.freedesktop.DBus.Error.NoReply",
    "No such file or directory (2), Permission denied (13) EACCES",
    "process exited, status=11/SEGV; status=1/FAILURE exit code: 3",
    "\"GET /x HTTP/1.1\" 404 12 HTTP status 503 \"status\": 500",
    "Error Domain=NSURLErrorDomain Code=-1009 \"offline\"",
    "Oops: 0002 [#1] Unable to handle kernel paging request; segfault at 0",
    "WARNING: CPU: 0 PID: 1 at kernel/sched.c:12 INFO: rcu_sched self-detected stall",
    "rst:0x10 (RTCWDT_RTC_RESET),boot:0x13 Guru Meditation Error",
    "ErrorFrame bus-off error-passive ERROR PASSIVE",
    "Caused by: FooException got user-level BarError",
    "fault code OTA-1042 alarm [ABC123 ERR-17 FOTA_99",
    "error code: 0x1F, err=-5. ret=-22, failed: x: -71)",
    "returned with status -13 stop number 7 gle = 5",
    "tid(1a2b) 80070057 *FAILED* [80240022 -2147024891",
    "INFO: task kworker blocked for more than 120 seconds; Out of memory: Kill",
    "DTC 523:14 FATAL EXCEPTION ANR in com.acme",
];

#[test]
fn the_scan_finds_in_fuzzed_lines_what_the_plain_loop_finds() {
    let rules = RuleSet::built_in().expect("the built-in rules are valid");
    let scanner = std::cell::RefCell::new(Scanner::new(rules.clone()));
    let found = std::cell::Cell::new(0);
    fuzz(|random| {
        let mut text = Vec::new();
        for _ in 0..1 + random.below(20) {
            let (line, other) = (random.pick(&LINES).as_bytes(), random.pick(&LINES).as_bytes());
            // The beginning of one and the end of another, and then some bytes that are different.
            let mut line = [&line[..random.below(line.len() + 1)], &other[random.below(other.len() + 1)..]].concat();
            for _ in 0..random.below(4) {
                let at = random.below(line.len().max(1)).min(line.len());
                match random.below(4) {
                    0 => line.insert(at, b" 0_-:=(\xff\r\tE"[random.below(11)]),
                    1 if at < line.len() => drop(line.remove(at)),
                    2 if at < line.len() => line[at] ^= 0x20,
                    _ => line.insert(at, random.below(256) as u8),
                }
            }
            text.extend_from_slice(&line);
            text.extend_from_slice(random.pick(&["\n", "\n", "\r\n"]).as_bytes());
        }
        repeat_endings(random, &mut text);
        let block_bytes = [1, 50, 4096][random.below(3)];
        found.set(found.get() + check(&rules, &mut scanner.borrow_mut(), &text, block_bytes, "the built-in rules"));
    });
    // A repetition of one seed finds little.
    assert!(found.get() > 1000 || runs() < RUNS, "fuzzed lines have codes");
}
