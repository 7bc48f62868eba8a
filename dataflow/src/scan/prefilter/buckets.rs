//! Assigns literals to buckets.
//!
//! The tables of a bucket accept the fingerprints of its literals and all mixtures of
//! them: any low half of a byte with any high half, byte by byte. So literals with
//! similar fingerprints should share a bucket, and where a fingerprint begins within
//! its literal is chosen with regard to the others. How much of a log the tables
//! would accept is estimated on a sample.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::scan::prefilter::byte_set::{ByteSet, frequency};
use crate::scan::prefilter::literals::Literal;

/// Bytes of a fingerprint.
pub const FINGERPRINT: usize = 3;

/// The maximum number of buckets.
pub const BUCKETS: usize = 16;

/// Up to this many literals get half the buckets, which take half the time.
const FEW_LITERALS: usize = 24;

/// A fingerprint begins at most this many bytes after its literal's lead.
pub const SHIFT_MAX: usize = 4;

/// A literal as a row of classes; the first is the lead.
pub struct PlacedLiteral {
    row: Vec<ByteSet>,
    /// Where the fingerprint begins in `row`.
    pub shift: usize,
}

impl PlacedLiteral {
    /// A literal whose fingerprint is not chosen yet.
    pub fn new(literal: &Literal) -> PlacedLiteral {
        let lead = literal.lead.unwrap_or(ByteSet::ALL);
        PlacedLiteral { row: std::iter::once(lead).chain(literal.classes.iter().copied()).collect(), shift: 0 }
    }

    /// A class of the row; after its end, any byte.
    pub fn class(&self, index: usize) -> &ByteSet {
        self.row.get(index).unwrap_or(&ByteSet::ALL)
    }

    /// Where a fingerprint may begin. Only its lead may be a byte of another line,
    /// so a fingerprint that begins later ends with the row.
    fn shifts(&self) -> std::ops::RangeInclusive<usize> {
        let first = usize::from(self.row[0] == ByteSet::ALL);
        first..=SHIFT_MAX.min(self.row.len().saturating_sub(FINGERPRINT).max(first))
    }

    /// What the fingerprint that begins at `shift` accepts.
    pub fn closure(&self, shift: usize) -> Closure {
        std::array::from_fn(|position| halves(self.class(shift + position)))
    }
}

/// For each byte of a fingerprint, the halves that the tables accept.
pub type Closure = [(u16, u16); FINGERPRINT];

fn halves(class: &ByteSet) -> (u16, u16) {
    class.iter().fold((0, 0), |(low, high), byte| (low | 1 << (byte & 15), high | 1 << (byte >> 4)))
}

fn union(one: &Closure, other: &Closure) -> Closure {
    std::array::from_fn(|position| (one[position].0 | other[position].0, one[position].1 | other[position].1))
}

/// Chooses where fingerprints begin and assigns literals to buckets, so that the
/// tables accept as little of a log as possible: each fingerprint goes to the bucket
/// where it adds least, and further rounds move it again.
pub fn assign_buckets(placed: &mut [PlacedLiteral]) -> Vec<Vec<usize>> {
    /// The fixed cost of another fingerprint, in candidates per byte.
    const FINGERPRINT_COST: f64 = 1e-4;
    const ROUNDS: usize = 4;
    let mut sample = Sample::new();
    let mut by_closure: HashMap<Closure, Vec<(usize, usize)>> = HashMap::new();
    for (literal, one) in placed.iter().enumerate() {
        for shift in one.shifts() {
            by_closure.entry(one.closure(shift)).or_default().push((literal, shift));
        }
    }
    let mut candidates: Vec<BucketGroup> = by_closure
        .into_iter()
        .map(|(closure, members)| BucketGroup { closure, frequency: sample.frequency(&closure), members })
        .collect();
    candidates.sort_by_key(|candidate| candidate.closure);
    // The fingerprint that covers most literals at the least cost comes first.
    let mut groups: Vec<BucketGroup> = Vec::new();
    let mut is_placed = vec![false; placed.len()];
    while is_placed.contains(&false) {
        let value = |group: &BucketGroup| {
            let covered = group.members.iter().filter(|(literal, _)| !is_placed[*literal]).count();
            covered as f64 / (group.frequency + FINGERPRINT_COST)
        };
        let best = candidates.iter().map(value).enumerate().max_by(|one, other| one.1.total_cmp(&other.1));
        let Some((best, _)) = best else { break };
        let BucketGroup { closure, frequency, mut members } = candidates.swap_remove(best);
        // A row of equal classes has equal fingerprints at several positions.
        members.retain(|&(literal, shift)| {
            let is_first = !std::mem::replace(&mut is_placed[literal], true);
            if is_first {
                placed[literal].shift = shift;
            }
            is_first
        });
        groups.push(BucketGroup { closure, frequency, members });
    }
    groups.sort_by(|one, other| other.frequency.total_cmp(&one.frequency));
    let count = if placed.len() <= FEW_LITERALS { BUCKETS / 2 } else { BUCKETS };
    let mut buckets: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut closures: Vec<Option<Closure>> = vec![None; count];
    for round in 0..ROUNDS {
        for index in 0..groups.len() {
            if round > 0 {
                let Some(bucket) = buckets.iter().position(|bucket| bucket.contains(&index)) else { continue };
                buckets[bucket].retain(|other| *other != index);
                closures[bucket] =
                    buckets[bucket].iter().map(|&other| groups[other].closure).reduce(|one, other| union(&one, &other));
            }
            let costs = closures.iter().map(|closure| match closure {
                Some(closure) => sample.frequency(&union(closure, &groups[index].closure)) - sample.frequency(closure),
                None => groups[index].frequency,
            });
            let cheapest = costs.enumerate().min_by(|one, other| one.1.total_cmp(&other.1));
            let Some((bucket, _)) = cheapest else { continue };
            let joined =
                closures[bucket].map_or(groups[index].closure, |closure| union(&closure, &groups[index].closure));
            closures[bucket] = Some(joined);
            buckets[bucket].push(index);
        }
    }
    buckets.retain(|bucket| !bucket.is_empty());
    buckets
        .into_iter()
        .map(|bucket| {
            bucket
                .into_iter()
                .flat_map(|index| std::mem::take(&mut groups[index].members))
                .map(|(literal, _)| literal)
                .collect()
        })
        .collect()
}

/// Literals with the same fingerprint, to be assigned to a bucket.
struct BucketGroup {
    closure: Closure,
    frequency: f64,
    /// The literals, and where their fingerprint begins.
    members: Vec<(usize, usize)>,
}

/// Log lines, and words of others, to try fingerprints on: the bytes of logs are not
/// independent of each other.
const SAMPLE: &str = include_str!("sample.txt");

/// How often tables accept a position: on the sample, plus an estimate byte by byte for what the sample lacks.
struct Sample {
    /// For each half of a byte, the positions of the sample with this low half, and with this high half.
    low: [SampleBits; 16],
    high: [SampleBits; 16],
    /// The share of bytes, by accepted low and high halves.
    shares: HashMap<(u16, u16), f64>,
    cached: HashMap<Closure, f64, RandomState>,
}

const SAMPLE_WORDS: usize = SAMPLE.len().div_ceil(64);
type SampleBits = [u64; SAMPLE_WORDS];

impl Sample {
    fn new() -> Sample {
        let mut sample = Sample {
            low: [[0; SAMPLE_WORDS]; 16],
            high: [[0; SAMPLE_WORDS]; 16],
            shares: HashMap::new(),
            cached: HashMap::default(),
        };
        for (at, byte) in SAMPLE.bytes().enumerate() {
            sample.low[usize::from(byte & 15)][at / 64] |= 1 << (at % 64);
            sample.high[usize::from(byte >> 4)][at / 64] |= 1 << (at % 64);
        }
        sample
    }

    fn frequency(&mut self, closure: &Closure) -> f64 {
        if let Some(cached) = self.cached.get(closure) {
            return *cached;
        }
        let mut found = [u64::MAX; SAMPLE_WORDS];
        let mut product = 1.0;
        for (position, &(low, high)) in closure.iter().enumerate() {
            let (lows, highs) = (union_of(&self.low, low), union_of(&self.high, high));
            for (word, found) in found.iter_mut().enumerate() {
                let both = |word: usize| lows.get(word).zip(highs.get(word)).map_or(0, |(low, high)| low & high);
                // Looks `position` bytes ahead.
                *found &= (both(word) >> position) | both(word + 1).checked_shl(64 - position as u32).unwrap_or(0);
            }
            product *= *self.shares.entry((low, high)).or_insert_with(|| {
                let halves = |halves: u16| (0..16u8).filter(move |half| halves >> half & 1 != 0);
                halves(high)
                    .flat_map(|high| halves(low).map(move |low| frequency(high << 4 | low)))
                    .sum::<f64>()
                    .min(1.0)
            });
        }
        let count: u32 = found.iter().map(|word| word.count_ones()).sum();
        let frequency = f64::from(count) / SAMPLE.len() as f64 + product;
        self.cached.insert(*closure, frequency);
        frequency
    }
}

fn union_of(bits: &[SampleBits; 16], halves: u16) -> SampleBits {
    let mut all = [0; SAMPLE_WORDS];
    for bits in bits.iter().enumerate().filter(|(half, _)| halves >> half & 1 != 0).map(|(_, bits)| bits) {
        all.iter_mut().zip(bits).for_each(|(all, more)| *all |= more);
    }
    all
}
