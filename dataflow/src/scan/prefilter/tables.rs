//! The tables of the prefilter, and its literals.
//!
//! The tables accept a few fingerprints too many (any low half with any high half);
//! the check of the literals is exact. Without AVX2, the tables are looked up byte by
//! byte.

use crate::scan::prefilter::buckets::{BUCKETS, FINGERPRINT, PlacedLiteral, SHIFT_MAX, assign_buckets};
use crate::scan::prefilter::byte_set::ByteSet;
use crate::scan::prefilter::literals::{LITERAL_BYTES, Literal};
use crate::scan::prefilter::positions::{Position, Positions, Sweep};

/// Bytes around the start of a fingerprint that a literal may check: from `SHIFT_MAX` + 1 before it.
const POSITIONS: usize = SHIFT_MAX + 1 + LITERAL_BYTES + 2;

/// Bytes around a position that are read at once, and how many of them are before it.
const AROUND: usize = 16;
const AROUND_BEFORE: usize = SHIFT_MAX + 1;

/// Classes that a sieve checks.
const SIEVE: usize = 4;

/// The byte assumed outside of the block, for literals at its ends.
pub(super) const OUTSIDE: u8 = b'\n';

/// A position at which a literal occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidatePosition {
    /// The position of the cut: the first byte of the literal after its lead.
    pub at: usize,
    /// The index of the literal.
    pub literal: usize,
    /// Line feeds before `at`.
    pub line_feeds: u64,
}

/// For each byte of a fingerprint, a table of sixteen bytes, twice.
type WideTables = [[u8; 32]; FINGERPRINT];

/// Finds any literal of a set.
pub struct Prefilter {
    /// For each byte of a fingerprint, the buckets by its low half and by its high half.
    low: [[u16; 16]; FINGERPRINT],
    high: [[u16; 16]; FINGERPRINT],
    /// The same for each group of eight buckets, in the layout for looking up 32 bytes at once.
    pub(crate) tables: [(WideTables, WideTables); BUCKETS / 8],
    buckets: Vec<Bucket>,
}

/// The literals of one bucket, as bits of words: a literal is at a position if its bit remains after all bytes.
struct Bucket {
    /// Up to 64 literals each.
    words: Vec<Word>,
    sieve: Sieve,
}

/// The most selective classes of a bucket, small enough for the L1 cache: a literal's
/// bit is its number modulo eight.
struct Sieve {
    /// Relative to [`AROUND_BEFORE`] bytes before the fingerprint.
    offsets: [usize; SIEVE],
    accepts: [[u8; 256]; SIEVE],
}

impl Sieve {
    fn new(words: &[Word]) -> Sieve {
        let mut sieve = Sieve { offsets: [0; SIEVE], accepts: [[u8::MAX; 256]; SIEVE] };
        // For a bucket of several words, the sieve accepts everything.
        let [Word { positions, .. }] = words else { return sieve };
        for (index, (position, accepts)) in positions.iter().take(SIEVE).enumerate() {
            sieve.offsets[index] = (position + AROUND_BEFORE as isize) as usize;
            for (byte, literals) in accepts.iter().enumerate() {
                sieve.accepts[index][byte] = literals.to_le_bytes().into_iter().fold(0, |all, bits| all | bits);
            }
        }
        sieve
    }
}

struct Word {
    /// Literal index, and how far its cut is after the start of the fingerprint.
    literals: Vec<(usize, isize)>,
    /// The positions to check, relative to the start of the fingerprint, the most
    /// selective first, and which literals accept each byte there.
    positions: Vec<(isize, Box<[u64; 256]>)>,
}

impl Prefilter {
    /// A prefilter for these literals.
    pub fn new(literals: &[Literal]) -> Prefilter {
        let mut placed: Vec<PlacedLiteral> = literals.iter().map(PlacedLiteral::new).collect();
        let members = assign_buckets(&mut placed);
        let mut prefilter = Prefilter {
            low: [[0; 16]; FINGERPRINT],
            high: [[0; 16]; FINGERPRINT],
            tables: Default::default(),
            buckets: Vec::new(),
        };
        for (bit, members) in members.iter().enumerate() {
            for &member in members {
                for (position, (low, high)) in placed[member].closure(placed[member].shift).into_iter().enumerate() {
                    for half in 0..16 {
                        prefilter.low[position][half] |= (low >> half & 1) << bit;
                        prefilter.high[position][half] |= (high >> half & 1) << bit;
                    }
                }
            }
            prefilter.buckets.push(Bucket::new(members, &placed));
        }
        for (group, (low, high)) in prefilter.tables.iter_mut().enumerate() {
            let widen = |halves: &[u16; 16]| std::array::from_fn(|lane| (halves[lane % 16] >> (8 * group)) as u8);
            *low = prefilter.low.each_ref().map(widen);
            *high = prefilter.high.each_ref().map(widen);
        }
        prefilter
    }

    /// How many buckets there are.
    pub(crate) fn bucket_count(&self) -> usize {
        self.buckets.len()
    }

    /// Collects the positions up to `piece_end` at which a literal may be, byte by byte.
    pub(super) fn sweep(&self, text: &[u8], piece_end: usize, sweep: &mut Sweep, positions: &mut Positions) {
        while sweep.at < piece_end {
            let at = sweep.at;
            let position =
                Position { at: at as u32, line_feeds: sweep.line_feeds, buckets: self.buckets_at(text, at as isize) };
            if position.buckets != 0 && self.may_be(text, position) {
                positions.list[positions.count] = position;
                positions.count += 1;
            }
            sweep.line_feeds += u32::from(text[at] == b'\n');
            sweep.at += 1;
        }
    }

    pub(super) fn buckets_at(&self, text: &[u8], at: isize) -> u16 {
        (0..FINGERPRINT).fold(u16::MAX, |buckets, position| {
            let byte = byte_at(text, at + position as isize);
            buckets & self.low[position][usize::from(byte & 15)] & self.high[position][usize::from(byte >> 4)]
        })
    }

    /// Whether some literal may be at a position, by its rarest classes. Most positions are
    /// rejected; no branch depends on the result, so none is mispredicted.
    #[inline(always)]
    pub(crate) fn may_be(&self, text: &[u8], position: Position) -> bool {
        let sieve = &self.buckets[position.buckets.trailing_zeros() as usize].sieve;
        let around =
            (position.at as usize).checked_sub(AROUND_BEFORE).and_then(|start| text[start..].first_chunk::<AROUND>());
        let accepted = match around {
            Some(around) => (0..SIEVE).fold(u8::MAX, |accepted, index| {
                accepted & sieve.accepts[index][usize::from(around[sieve.offsets[index] % AROUND])]
            }),
            None => u8::MAX,
        };
        // The sieve covers only one bucket.
        (accepted != 0) | !position.buckets.is_power_of_two()
    }

    /// Reports the literals of `buckets` whose fingerprint is at `at`; `line_feeds` are before it.
    pub(super) fn confirm(
        &self,
        text: &[u8],
        at: isize,
        buckets: u16,
        line_feeds: u64,
        on_candidate: &mut impl FnMut(CandidatePosition),
    ) {
        let mut left = buckets;
        while left != 0 {
            let bucket = &self.buckets[left.trailing_zeros() as usize];
            left &= left - 1;
            for word in &bucket.words {
                let mut accepted = u64::MAX;
                for (position, accepts) in &word.positions {
                    accepted &= accepts[usize::from(byte_at(text, at + position))];
                    if accepted == 0 {
                        break;
                    }
                }
                while accepted != 0 {
                    let (literal, shift) = word.literals[accepted.trailing_zeros() as usize];
                    accepted &= accepted - 1;
                    if let Ok(position) = usize::try_from(at + shift)
                        && position < text.len()
                    {
                        // Between the cut and the fingerprint there is no line feed, but the lead may be one.
                        let lead = u64::from(shift == 1 && at >= 0 && text[at as usize] == b'\n');
                        on_candidate(CandidatePosition { at: position, literal, line_feeds: line_feeds + lead });
                    }
                }
            }
        }
    }
}

fn byte_at(text: &[u8], at: isize) -> u8 {
    usize::try_from(at).ok().and_then(|at| text.get(at).copied()).unwrap_or(OUTSIDE)
}

impl Bucket {
    fn new(members: &[usize], placed: &[PlacedLiteral]) -> Bucket {
        let words: Vec<Word> = members.chunks(64).map(|members| Word::new(members, placed)).collect();
        Bucket { sieve: Sieve::new(&words), words }
    }
}

impl Word {
    fn new(members: &[usize], placed: &[PlacedLiteral]) -> Word {
        let class_at = |member: usize, position: isize| {
            let index = usize::try_from(position + placed[member].shift as isize);
            index.map_or(&ByteSet::ALL, |index| placed[member].class(index))
        };
        let first = -(SHIFT_MAX as isize);
        let mut positions: Vec<(f64, isize)> = (first..first + POSITIONS as isize)
            .filter(|&position| members.iter().any(|&member| *class_at(member, position) != ByteSet::ALL))
            .map(|position| (members.iter().map(|&member| class_at(member, position).frequency()).sum(), position))
            .collect();
        positions.sort_by(|one, other| one.0.total_cmp(&other.0));
        let accepts = |position: isize| {
            let mut accepts = Box::new([0; 256]);
            for (number, &member) in members.iter().enumerate() {
                class_at(member, position).iter().for_each(|byte| accepts[usize::from(byte)] |= 1 << number);
            }
            accepts
        };
        Word {
            // A row begins with the lead, one byte before the cut.
            literals: members.iter().map(|&member| (member, 1 - placed[member].shift as isize)).collect(),
            positions: positions.into_iter().map(|(_, position)| (position, accepts(position))).collect(),
        }
    }
}
