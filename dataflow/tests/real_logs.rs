//! The default rules on real logs, against the counts of a plain loop in
//! another language.
//!
//! The logs have their own licences and are not part of the project. Without them,
//! this test prints a note and passes.

use std::collections::BTreeMap;
use std::path::Path;

use argus_dataflow::counts::partial::{CodeLimits, PartialCounts};
use argus_dataflow::scan::Scanner;
use argus_dataflow::{BlockReader, LINE_BYTES_MAX, RuleSet, text};
use serde_json::Value;

/// 2026-11-26T12:00:00Z.
const UPLOADED_AT: i64 = 1_795_694_400_000_000;

#[test]
fn every_real_log_counts_as_the_reference_counts_it_for_any_block_size() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let Ok(golden) = std::fs::read(folder.join("golden.json")) else {
        eprintln!("skipped: the real logs (../shared/data/golden.json) are missing");
        return;
    };
    let golden: BTreeMap<String, Value> = serde_json::from_slice(&golden).expect("golden.json is JSON");
    assert!(golden.len() > 40, "golden.json lists the real logs");
    let mut scanner = Scanner::new(RuleSet::built_in().expect("the built-in rules are valid"));
    for (name, expected) in &golden {
        let expected = expected.get("decoded").unwrap_or(expected);
        let bytes = std::fs::read(folder.join(name)).expect("the file that golden.json names exists");
        for block_bytes in [64, 4096, 256 * 1024, LINE_BYTES_MAX] {
            let mut blocks = BlockReader::new(text::text(&bytes[..]).expect("reads"), block_bytes);
            let mut partial = PartialCounts::default();
            while let Some(block) = blocks.next_block().expect("reads") {
                partial.merge(scanner.scan(&block, UPLOADED_AT).0, CodeLimits::default());
            }
            // The file counts the bytes of DLT as text; decoded, each message is a line.
            if let Some(messages) = expected["dlt"].get("messages") {
                assert_eq!(&Value::from(blocks.lines()), messages, "messages of {name}");
                continue;
            }
            assert_eq!(Value::from(blocks.bytes()), expected["bytes"], "bytes of {name}");
            assert_eq!(Value::from(blocks.lines()), expected["lines"], "lines of {name}");
            assert_eq!(Value::from(partial.error_lines), expected["error_lines"], "error lines of {name}");
            let mut codes: BTreeMap<String, u64> = BTreeMap::new();
            partial.codes.into_iter().for_each(|(key, seen)| *codes.entry(key.code).or_default() += seen.count);
            assert_eq!(serde_json::json!(codes), expected["codes"], "codes of {name}");
        }
    }
}
