//! For any order, block size, epoch split and number of workers, the output of the
//! dataflow equals a plain loop over the lines.

use std::collections::BTreeMap;
use std::sync::Arc;

use argus_dataflow::scan::Scanner;
use argus_dataflow::{
    BlockReader, Change, ClosedEpoch, CodeLimits, Config, Dataflow, FileRow, Origin, Output, Row, RuleSet, VersionId,
};
use proptest::prelude::*;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

/// 2026-11-26T12:00:00Z.
const UPLOADED_AT: i64 = 1_795_694_400_000_000;

/// (file, code) → occurrences, and file → (lines, error lines, occurrences).
#[derive(Debug, Default, PartialEq, Eq)]
struct Tables {
    counts: BTreeMap<(String, String), i64>,
    files: BTreeMap<String, (u64, u64, u64)>,
}

fn rules() -> RuleSet {
    RuleSet::built_in().expect("the built-in rules are valid")
}

fn plain_loop(files: &[(String, Vec<u8>)]) -> Tables {
    let scanner = Scanner::new(rules());
    let mut tables = Tables::default();
    for (name, text) in files {
        let totals = tables.files.entry(name.clone()).or_default();
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = if totals.0 == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
            let found = scanner.codes_of_line(line.strip_suffix(b"\r").unwrap_or(line));
            totals.0 += 1;
            totals.1 += u64::from(!found.is_empty());
            totals.2 += found.len() as u64;
            for code in found {
                *tables.counts.entry((name.clone(), code.code)).or_default() += 1;
            }
        }
    }
    tables
}

fn file_row(name: &str, version: VersionId, live: i8) -> FileRow {
    FileRow {
        batch_id: Uuid::nil(),
        file_id: Uuid::nil(),
        version,
        name: name.to_owned(),
        generation: 1,
        live,
        erased: 0,
        open_line: false,
        bytes: 0,
        lines: 0,
        long_lines: 0,
        last_line: 0,
        error_lines: 0,
        occurrences: 0,
        uploaded_at: 0,
        failure: None,
        binary: false,
        sha256: None,
        first_ts: None,
        last_ts: None,
        rules: None,
    }
}

/// Inserts one file and returns the row that admits it.
fn insert(dataflow: &Dataflow, name: &str, text: &[u8], block_bytes: usize) -> FileRow {
    let mut row = file_row(name, VersionId::new(), 1);
    let origin =
        Origin { batch_id: row.batch_id, file: row.name.clone(), version: row.version, uploaded_at: UPLOADED_AT };
    let origin = Arc::new(origin);
    let mut blocks = BlockReader::new(text, block_bytes);
    while let Some(block) = blocks.next_block().expect("memory reads") {
        block_on(dataflow.insert(&origin, block)).expect("the dataflow runs");
    }
    row.lines = blocks.lines();
    row
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts").block_on(future)
}

/// Reads until `last` is closed; checks that epochs come in order and occurrences before their epoch.
fn closed_up_to(outputs: &mut UnboundedReceiver<Output>, last: u64) -> Vec<ClosedEpoch> {
    let mut epochs: Vec<ClosedEpoch> = Vec::new();
    let mut occurrences: BTreeMap<VersionId, u64> = BTreeMap::new();
    while epochs.last().is_none_or(|epoch| epoch.epoch < last) {
        match outputs.blocking_recv().expect("the dataflow runs") {
            Output::Scanned(block) => {
                *occurrences.entry(block.origin.version).or_default() += block.occurrences.len() as u64
            }
            Output::Counted(..) => panic!("this dataflow admits"),
            Output::Closed(epoch) => {
                assert_eq!(epoch.epoch, epochs.last().map_or(epoch.epoch, |before| before.epoch + 1));
                for (row, count) in &epoch.rows {
                    assert_ne!(*count, 0);
                    if let Row::File(file) = row
                        && file.live > 0
                    {
                        assert_eq!(occurrences.get(&file.version).copied().unwrap_or_default(), file.occurrences);
                    }
                }
                epochs.push(epoch);
            }
        }
    }
    epochs
}

/// Sums rows as readers do: counts of the live versions.
fn sum(epochs: &[ClosedEpoch]) -> Tables {
    let rows = || epochs.iter().flat_map(|epoch| &epoch.rows);
    let mut live: BTreeMap<VersionId, i64> = BTreeMap::new();
    for (row, count) in rows() {
        if let Row::File(file) = row {
            *live.entry(file.version).or_default() += count * i64::from(file.live);
        }
    }
    let mut tables = Tables::default();
    for (row, count) in rows() {
        match row {
            Row::File(file) if live[&file.version] > 0 => {
                let totals = tables.files.entry(file.name.clone()).or_default();
                totals.0 += file.lines;
                totals.1 += file.error_lines;
                totals.2 += file.occurrences;
            }
            Row::Count(code) if live[&code.version] > 0 => {
                *tables.counts.entry((code.file.clone(), code.code.clone())).or_default() += count;
            }
            _ => {}
        }
    }
    tables
}

fn start(workers: usize, in_flight_bytes: usize) -> (Dataflow, UnboundedReceiver<Output>) {
    Dataflow::start(Config {
        workers,
        rules: rules(),
        first_epoch: 1,
        in_flight_bytes,
        occurrences: true,
        limits: CodeLimits::default(),
        scans_only: false,
    })
    .expect("the dataflow starts")
}

/// Lines with and without codes, of odd bytes and line ends.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let coded = prop::sample::select(vec![
        "2026-03-01 10:15:30,123 ERROR [main] ota.Flash - DTC P0301-07 stored, errno: 5",
        "updater: fail rc=-110 (0x80070005) HRESULT",
        "E_FAIL and E_FAIL and SIGSEGV",
        "Kernel panic - not syncing: BUG: x",
        "SPN 91 FMI 3 exited with code 7",
        "0x80073712 - ERROR_SXS_COMPONENT_STORE_CORRUPT failed",
        "\u{feff}ORA-00942 error",
        "java.io.IOException: error code 17",
        "status=404 rc=0 signal 15",
        "P0301 no code here",
    ]);
    prop_oneof![
        3 => coded.prop_map(|line| line.as_bytes().to_vec()),
        2 => prop::collection::vec(any::<u8>().prop_filter("no line feed", |&byte| byte != b'\n'), 0..60),
        1 => Just(Vec::new()),
    ]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let ends = prop::sample::select(vec![&b"\n"[..], b"\r\n"]);
    (prop::collection::vec((line(), ends), 0..30), any::<bool>()).prop_map(|(lines, last_feed)| {
        let mut text: Vec<u8> = lines.into_iter().flat_map(|(line, end)| [&line[..], end].concat()).collect();
        if !last_feed {
            text.pop();
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_tables_equal_a_plain_loop(
        texts in prop::collection::vec((text(), any::<bool>()), 1..8),
        workers in 1usize..5,
        block_bytes in 1usize..2000,
        in_flight_bytes in prop_oneof![Just(1usize), Just(4096), Just(Config::IN_FLIGHT_BYTES_DEFAULT)],
    ) {
        let files: Vec<(String, Vec<u8>)> =
            texts.iter().enumerate().map(|(index, (text, _))| (format!("{index}.log"), text.clone())).collect();
        let (dataflow, mut outputs) = start(workers, in_flight_bytes);
        // `insert` waits for the reader of occurrences, so the reader has its own thread.
        let (last_in, last) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut epochs = Vec::new();
            while let Ok(epoch) = last.recv() {
                epochs.extend(closed_up_to(&mut outputs, epoch));
            }
            (epochs, outputs)
        });
        let mut epoch = 0;
        let mut changes = Vec::new();
        let total = files.len() as u64;
        last_in.send(total).expect("the reader runs");
        for ((name, text), (_, together)) in files.iter().zip(&texts) {
            changes.push(Change::Admit(insert(&dataflow, name, text, block_bytes)));
            if !together {
                epoch += 1;
                dataflow.advance(epoch, std::mem::take(&mut changes)).expect("the dataflow runs");
            }
        }
        while epoch < total {
            epoch += 1;
            dataflow.advance(epoch, std::mem::take(&mut changes)).expect("the dataflow runs");
        }
        drop(last_in);
        let (epochs, _outputs) = reader.join().expect("the reader ends well");
        prop_assert_eq!(sum(&epochs), plain_loop(&files));
    }
}

/// Texts of pieces that patterns match, with line ends anywhere.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "\n",
        "\r\n",
        "\r",
        " ",
        "\t",
        "(",
        "\"GET",
        "\"",
        " 404",
        "rc",
        "=",
        ":",
        "5",
        "-5",
        "error",
        "code",
        "signal",
        "11",
        "exit",
        "status=7/",
        "Oops",
        "ErrorCode::kBad",
        "EIO",
        "SPN 91",
        "FMI 3",
        "DTC ",
        "P0301",
        "0x80070005",
        "hr=",
        "Exception",
        "java.io.IO",
        "7F 31 22",
        "negative response ",
        "Domain=A ",
        "Code=3",
        "rst:0x1 (SW)",
        "bus-off",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_rules_find_in_a_block_what_they_find_line_by_line(
        text in pieces(),
        chosen in prop::collection::btree_set(0usize..19, 1..4),
        block_bytes in prop_oneof![Just(1usize), Just(7), Just(4096)],
    ) {
        let each: Vec<&str> = argus_dataflow::rules::DEFAULT_RULES.split("[[rule]]").skip(1).collect();
        let file: String = chosen.iter().map(|&index| format!("[[rule]]{}", each[index])).collect();
        let rules = RuleSet::parse(&[&file]).expect("a part of the built-in rules is valid");
        let mut scanner = Scanner::new(rules);
        let mut expected: Vec<(u64, String)> = Vec::new();
        for (line, number) in text.split_inclusive('\n').zip(1..) {
            let line = line.strip_suffix('\n').unwrap_or(line);
            let found = scanner.codes_of_line(line.strip_suffix('\r').unwrap_or(line).as_bytes());
            expected.extend(found.into_iter().map(|found| (number, found.code)));
        }
        let mut blocks = BlockReader::new(text.as_bytes(), block_bytes);
        let mut seen = Vec::new();
        while let Some(block) = blocks.next_block().expect("memory reads") {
            let (_, occurrences) = scanner.scan(&block, UPLOADED_AT);
            seen.extend(occurrences.into_iter().map(|occurrence| (occurrence.line, occurrence.code.to_string())));
        }
        prop_assert_eq!(seen, expected);
    }
}

/// The rule of this code requires a word like "failed", which the second line does not have: the byte that makes it
/// another word is before the common ending of both lines.
#[test]
fn a_line_is_not_taken_for_another_with_the_same_ending() {
    let lines = b"x FAILED* [8020022 -2147024891\nABC_FAILED* [8020022 -2147024891\nxFAILED* [8020022 -2147024891\n";
    let mut scanner = Scanner::new(rules());
    let block = argus_dataflow::TextBlock { text: lines.to_vec().into(), first_line: 1, offset: 0 };
    let (_, occurrences) = scanner.scan(&block, UPLOADED_AT);
    let seen: Vec<(u64, &str)> = occurrences.iter().map(|occurrence| (occurrence.line, &*occurrence.code)).collect();
    assert_eq!(seen, [(1, "0x80070005")]);
}

#[test]
fn a_line_full_of_codes_takes_time_in_proportion_to_its_length() {
    let mut scanner = Scanner::new(rules());
    let line = argus_dataflow::TextBlock { text: b"EIO E_FAIL ".repeat(90_000).into(), first_line: 1, offset: 0 };
    let codes: Vec<String> =
        scanner.scan(&line, UPLOADED_AT).1.into_iter().map(|occurrence| occurrence.code.to_string()).collect();
    assert_eq!(codes, ["E_FAIL", "EIO"]);
    // Each of these may begin a match of any length, and none does.
    let line = argus_dataflow::TextBlock { text: b"INFO: task ".repeat(90_000).into(), first_line: 1, offset: 0 };
    assert_eq!(scanner.scan(&line, UPLOADED_AT).1, []);
}

#[test]
fn a_file_and_its_replacement_are_swapped_in_one_epoch() {
    let (dataflow, mut outputs) = start(2, 1 << 20);
    let old = insert(&dataflow, "a.log", b"E_FAIL\nE_FAIL\n", 64);
    dataflow.advance(1, vec![Change::Admit(old.clone())]).expect("the dataflow runs");
    let new = insert(&dataflow, "a.log", b"E_ABORT\nE_ABORT\n", 64);
    dataflow
        .advance(2, vec![Change::Withdraw(file_row("a.log", old.version, -1)), Change::Admit(new)])
        .expect("the dataflow runs");
    let epochs = closed_up_to(&mut outputs, 2);
    for (shown, code) in [(1, "E_FAIL"), (2, "E_ABORT")] {
        let tables = sum(&epochs[..shown]);
        assert_eq!(tables.counts, BTreeMap::from([(("a.log".to_owned(), code.to_owned()), 2)]));
    }
}

#[test]
fn an_aborted_file_is_not_counted() {
    let (dataflow, mut outputs) = start(2, 1 << 20);
    let aborted = insert(&dataflow, "a.log", b"E_FAIL\n", 64);
    dataflow.advance(1, vec![Change::Abandon(aborted.version)]).expect("the dataflow runs");
    let epochs = closed_up_to(&mut outputs, 1);
    assert_eq!(epochs[0].rows, [(Row::Abandoned(aborted.version), 1)]);
}

/// Which codes are counted by name must not depend on who scans which lines when.
#[test]
fn codes_beyond_the_limit_are_the_same_for_any_workers_blocks_and_epochs() {
    let text: String = (0..400)
        .map(|number: u32| format!("ota{}: error 0x{:08X} failed\n", number % 7, 0x8007_1000 + (number * 37) % 60))
        .collect();
    let limits = CodeLimits { codes_per_rule: 20, pairs_per_rule: 30 };
    let counted = |workers: usize, block_bytes: usize| {
        let in_flight_bytes = Config::IN_FLIGHT_BYTES_DEFAULT;
        let config = Config {
            workers,
            rules: rules(),
            first_epoch: 1,
            in_flight_bytes,
            occurrences: true,
            limits,
            scans_only: false,
        };
        let (dataflow, mut outputs) = Dataflow::start(config).expect("the dataflow starts");
        let row = insert(&dataflow, "a.log", text.as_bytes(), block_bytes);
        // Some of the blocks are scanned at an epoch before the one that admits them.
        dataflow.advance(1, Vec::new()).expect("the dataflow runs");
        dataflow.advance(2, vec![Change::Admit(row)]).expect("the dataflow runs");
        let mut rows: Vec<(String, Option<String>, i64, u64)> = closed_up_to(&mut outputs, 2)
            .into_iter()
            .flat_map(|epoch| epoch.rows)
            .filter_map(|(row, count)| match row {
                Row::Count(row) => Some((row.code, row.component, count, row.example_line)),
                _ => None,
            })
            .collect();
        rows.sort();
        rows
    };
    let expected = counted(1, 1 << 20);
    let codes: std::collections::BTreeSet<&str> = expected.iter().map(|(code, ..)| code.as_str()).collect();
    assert_eq!(codes.len(), 21, "{codes:?}");
    assert!(codes.iter().any(|code| code.starts_with("OTHER:")), "{codes:?}");
    assert_eq!(expected.iter().map(|(_, _, count, _)| count).sum::<i64>(), 400);
    for (workers, block_bytes) in [(1, 64), (2, 100), (3, 333), (4, 4096)] {
        assert_eq!(counted(workers, block_bytes), expected, "{workers} workers, blocks of {block_bytes} bytes");
    }
}
