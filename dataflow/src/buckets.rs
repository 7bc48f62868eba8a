//! Shares windows out to buckets.
//!
//! A bucket's tables accept what its windows' fingerprints accept, and the
//! mixtures of those: any low half of a byte with any high half, byte by byte.
//! So windows whose fingerprints are alike belong together, and where a
//! fingerprint begins within its window is chosen with a view to the others.
//! What the tables would accept of a log is estimated on a sample.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::bytes::{ByteSet, frequency};
use crate::windows::Window;

/// Bytes of a fingerprint.
pub const FINGERPRINT: usize = 3;

/// How many buckets there are at the most.
pub const BUCKETS: usize = 16;

/// Half as many take half the time; so few windows do without the others.
const FEW_WINDOWS: usize = 24;

/// A fingerprint begins at most this far behind its window's lead.
pub const SHIFT_MAX: usize = 4;

/// A window as a row of classes, of which the first is the lead.
pub struct Placed {
    row: Vec<ByteSet>,
    /// Where the fingerprint begins in `row`.
    pub shift: usize,
}

impl Placed {
    /// A window whose fingerprint is still to be chosen.
    pub fn new(window: &Window) -> Placed {
        let lead = window.lead.unwrap_or(ByteSet::ALL);
        Placed { row: std::iter::once(lead).chain(window.classes.iter().copied()).collect(), shift: 0 }
    }

    /// A class of the row; behind its end, any byte.
    pub fn class(&self, index: usize) -> &ByteSet {
        self.row.get(index).unwrap_or(&ByteSet::ALL)
    }

    /// Where a fingerprint may begin. A lead is the only byte of one that may
    /// be of another line, so one that begins later ends with the row.
    fn shifts(&self) -> std::ops::RangeInclusive<usize> {
        let first = usize::from(self.row[0] == ByteSet::ALL);
        first..=SHIFT_MAX.min(self.row.len().saturating_sub(FINGERPRINT).max(first))
    }

    /// What the fingerprint that begins at `shift` accepts.
    pub fn closure(&self, shift: usize) -> Closure {
        std::array::from_fn(|place| halves(self.class(shift + place)))
    }
}

/// For each place of a fingerprint, the halves of bytes that the tables accept.
pub type Closure = [(u16, u16); FINGERPRINT];

fn halves(class: &ByteSet) -> (u16, u16) {
    class.iter().fold((0, 0), |(low, high), byte| (low | 1 << (byte & 15), high | 1 << (byte >> 4)))
}

fn union(one: &Closure, other: &Closure) -> Closure {
    std::array::from_fn(|place| (one[place].0 | other[place].0, one[place].1 | other[place].1))
}

/// Chooses where fingerprints begin and shares windows out to buckets, so that
/// the tables accept as little of a log as can be had: of all buckets, the two
/// that cost least together become one until few enough are left.
pub fn share_out(placed: &mut [Placed]) -> Vec<Vec<usize>> {
    /// A bucket of its own is worth this much to a fingerprint, in hits per byte.
    const FINGERPRINT_COST: f64 = 1e-4;
    const ROUNDS: usize = 4;
    let mut sample = Sample::new();
    let mut by_closure: HashMap<Closure, Vec<(usize, usize)>> = HashMap::new();
    for (window, one) in placed.iter().enumerate() {
        for shift in one.shifts() {
            by_closure.entry(one.closure(shift)).or_default().push((window, shift));
        }
    }
    let mut candidates: Vec<Group> = by_closure
        .into_iter()
        .map(|(closure, members)| Group { closure, frequency: sample.frequency(&closure), members })
        .collect();
    candidates.sort_by_key(|candidate| candidate.closure);
    // The fingerprint that serves most windows at the least cost comes first.
    let mut groups: Vec<Group> = Vec::new();
    let mut is_placed = vec![false; placed.len()];
    while is_placed.contains(&false) {
        let worth = |group: &Group| {
            let served = group.members.iter().filter(|(window, _)| !is_placed[*window]).count();
            served as f64 / (group.frequency + FINGERPRINT_COST)
        };
        let best = candidates.iter().map(worth).enumerate().max_by(|one, other| one.1.total_cmp(&other.1));
        let Some((best, _)) = best else { break };
        let Group { closure, frequency, mut members } = candidates.swap_remove(best);
        // A row of alike classes has alike fingerprints at several places.
        members.retain(|&(window, shift)| {
            let is_first = !std::mem::replace(&mut is_placed[window], true);
            if is_first {
                placed[window].shift = shift;
            }
            is_first
        });
        groups.push(Group { closure, frequency, members });
    }
    groups.sort_by(|one, other| other.frequency.total_cmp(&one.frequency));
    let count = if placed.len() <= FEW_WINDOWS { BUCKETS / 2 } else { BUCKETS };
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
                .map(|(window, _)| window)
                .collect()
        })
        .collect()
}

/// Windows on the way to a bucket.
struct Group {
    closure: Closure,
    frequency: f64,
    /// The windows, and where their fingerprint begins.
    members: Vec<(usize, usize)>,
}

/// Log lines, and words of others, to try fingerprints on: bytes do not stand
/// in logs independently of each other.
const SAMPLE: &str = include_str!("sample.txt");

/// How often tables accept a place: on the sample, and for what that does not hold, byte by byte.
struct Sample {
    /// For each half of a byte, where the sample has it low, and high.
    low: [SampleBits; 16],
    high: [SampleBits; 16],
    /// The share of bytes, by low and high half.
    shares: HashMap<(u16, u16), f64>,
    known: HashMap<Closure, f64, RandomState>,
}

const SAMPLE_WORDS: usize = SAMPLE.len().div_ceil(64);
type SampleBits = [u64; SAMPLE_WORDS];

impl Sample {
    fn new() -> Sample {
        let mut sample = Sample {
            low: [[0; SAMPLE_WORDS]; 16],
            high: [[0; SAMPLE_WORDS]; 16],
            shares: HashMap::new(),
            known: HashMap::default(),
        };
        for (at, byte) in SAMPLE.bytes().enumerate() {
            sample.low[usize::from(byte & 15)][at / 64] |= 1 << (at % 64);
            sample.high[usize::from(byte >> 4)][at / 64] |= 1 << (at % 64);
        }
        sample
    }

    fn frequency(&mut self, closure: &Closure) -> f64 {
        if let Some(known) = self.known.get(closure) {
            return *known;
        }
        let mut found = [u64::MAX; SAMPLE_WORDS];
        let mut product = 1.0;
        for (place, &(low, high)) in closure.iter().enumerate() {
            let (lows, highs) = (union_of(&self.low, low), union_of(&self.high, high));
            for (word, found) in found.iter_mut().enumerate() {
                let both = |word: usize| lows.get(word).zip(highs.get(word)).map_or(0, |(low, high)| low & high);
                // Looks `place` bytes ahead.
                *found &= (both(word) >> place) | both(word + 1).checked_shl(64 - place as u32).unwrap_or(0);
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
        self.known.insert(*closure, frequency);
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
