//! The texts that clients send, generated once: each plain and compressed, with its expected counts.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::generate::{ALL_KINDS, Random, write_log};
use crate::soak::model::Counts;

/// Small texts, of up to 32 KiB.
const SMALL: usize = 24;
/// Large texts, of 1 to 4 MiB.
const LARGE: u64 = 4;
/// The number of different codes in the texts with many codes.
const MANY: [u64; 4] = [700, 3_000, 8_000, 15_000];
/// The number of codes they are chosen from.
const MANY_UNIVERSE: u64 = 20_000;
/// The rule that matches them.
const MANY_RULE: &str = "err_symbol";
/// A last line without a line feed, and its code.
const OPEN_LINE: (&str, &str) = ("2026-03-01 10:15:30 ERROR [main] ota.Flash - flash driver hit SIGSEGV", "SIGSEGV");
/// The rest of that line.
pub const REST_OF_OPEN_LINE: &str = ", core written\n";

/// The encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not compressed.
    Identity,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Encoding {
    /// All encodings.
    pub const ALL: [Encoding; 3] = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd];

    /// The name in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Zstd => "zstd",
        }
    }
}

/// A text with its expected counts.
#[derive(Debug)]
pub struct Text {
    /// Not compressed.
    pub plain: Vec<u8>,
    gzip: Vec<u8>,
    zstd: Vec<u8>,
    /// The counts of its complete lines.
    pub whole: Counts,
    /// The counts of its last line, if that has no line feed.
    pub open: Option<Counts>,
}

impl Text {
    fn new(mut plain: Vec<u8>, whole: Counts, is_open: bool) -> Result<Arc<Text>> {
        let open = is_open.then(|| {
            plain.extend_from_slice(OPEN_LINE.0.as_bytes());
            let codes = BTreeMap::from([(OPEN_LINE.1.to_owned(), 1)]);
            Counts { bytes: OPEN_LINE.0.len() as u64, lines: 1, error_lines: 1, codes }
        });
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&plain)?;
        // The level at which the server compresses plain uploads.
        let zstd = zstd::encode_all(&plain[..], 1)?;
        Ok(Arc::new(Text { gzip: gzip.finish()?, zstd, plain, whole, open }))
    }

    /// The body in an encoding.
    pub fn body(&self, encoding: Encoding) -> &[u8] {
        match encoding {
            Encoding::Identity => &self.plain,
            Encoding::Gzip => &self.gzip,
            Encoding::Zstd => &self.zstd,
        }
    }

    /// Approximate bytes that the server stores for it.
    pub fn stored(&self, encoding: Encoding) -> u64 {
        match encoding {
            Encoding::Gzip => self.gzip.len() as u64,
            Encoding::Identity | Encoding::Zstd => self.zstd.len() as u64,
        }
    }
}

/// All texts.
#[derive(Debug)]
pub struct Texts {
    /// Small texts.
    pub small: Vec<Arc<Text>>,
    /// Texts of 1 to 4 MiB.
    pub large: Vec<Arc<Text>>,
    /// Texts with hundreds to thousands of different codes.
    pub many_codes: Vec<Arc<Text>>,
}

impl Texts {
    /// Generates them. The server counts `codes_per_rule` different codes of a rule by name for each upload.
    pub fn generate(seed: u64, codes_per_rule: usize) -> Result<Texts> {
        let random = &mut Random::new(seed);
        let mut small = Vec::new();
        for number in 0..SMALL {
            // Most have only a few lines.
            let bytes = 1 + random.below(if number % 3 == 0 { 32 << 10 } else { 2 << 10 });
            small.push(usual(bytes, random, number % 4 == 0)?);
        }
        let large = (1..=LARGE).map(|mib| usual(mib << 20, random, mib == 2)).collect::<Result<_>>()?;
        let many_codes = MANY.iter().map(|count| many(*count, random, codes_per_rule)).collect::<Result<_>>()?;
        Ok(Texts { small, large, many_codes })
    }
}

fn usual(bytes: u64, random: &mut Random, is_open: bool) -> Result<Arc<Text>> {
    let mut plain = Vec::new();
    let truth = write_log(&mut plain, bytes, random, 150, &ALL_KINDS)?;
    let whole = Counts { bytes: truth.bytes, lines: truth.lines, error_lines: truth.error_lines, codes: truth.codes };
    Text::new(plain, whole, is_open)
}

/// Lines with `count` different codes of one rule; the first `codes_per_rule` are counted by name.
fn many(count: u64, random: &mut Random, codes_per_rule: usize) -> Result<Arc<Text>> {
    let mut codes: BTreeMap<String, u64> = BTreeMap::new();
    while (codes.len() as u64) < count {
        codes.entry(format!("E_SOAK{:05}", random.below(MANY_UNIVERSE))).or_insert(1 + random.below(2));
    }
    let mut plain = Vec::new();
    for (code, lines) in &codes {
        for _ in 0..*lines {
            writeln!(plain, "2026-03-01 10:15:30 ERROR [main] ota.Flash - step ended with {code}")?;
        }
    }
    let lines = codes.values().sum();
    let mut named = BTreeMap::new();
    for (position, (code, lines)) in codes.into_iter().enumerate() {
        let name = if position < codes_per_rule { code } else { format!("OTHER:{MANY_RULE}") };
        *named.entry(name).or_default() += lines;
    }
    let whole = Counts { bytes: plain.len() as u64, lines, error_lines: lines, codes: named };
    Text::new(plain, whole, false)
}

#[cfg(test)]
mod tests {
    use argus_dataflow::counts::partial::{CodeLimits, PartialCounts};
    use argus_dataflow::scan::Scanner;
    use argus_dataflow::{BlockReader, RuleSet};

    use super::*;
    use crate::generate::UPLOADED_AT;

    #[test]
    fn the_rules_find_the_expected_counts() {
        let mut scanner = Scanner::new(RuleSet::built_in().expect("the built-in rules are valid"));
        let random = &mut Random::new(3);
        let small = usual(4 << 10, random, true).expect("writes to memory");
        let few = many(300, random, 500).expect("writes to memory");
        for text in [small, few] {
            let mut partial = PartialCounts::default();
            let mut blocks = BlockReader::new(&text.plain[..], 64 << 10);
            while let Some(block) = blocks.next_block().expect("memory reads") {
                partial.merge(scanner.scan(&block, UPLOADED_AT).0, CodeLimits::default());
            }
            let mut should = text.whole.clone();
            if let Some(open) = &text.open {
                should.add(open);
            }
            let mut counted = Counts { bytes: blocks.bytes(), lines: blocks.lines(), ..Counts::default() };
            counted.error_lines = partial.error_lines;
            partial.codes.into_iter().for_each(|(key, seen)| *counted.codes.entry(key.code).or_default() += seen.count);
            assert_eq!(counted, should);
        }
    }

    #[test]
    fn codes_beyond_the_limit_are_counted_together() {
        let text = many(700, &mut Random::new(3), 500).expect("writes to memory");
        assert_eq!(text.whole.codes.len(), 501);
        assert!(text.whole.codes.contains_key("OTHER:err_symbol"));
        assert_eq!(text.whole.errors(), text.whole.lines);
    }
}
