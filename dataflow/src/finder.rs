//! Finds windows in a block, all at once.
//!
//! Of each window four bytes in a row are its *fingerprint*. Windows with
//! alike fingerprints share one of sixteen *buckets*, and a bucket is a bit: for
//! each place of the fingerprint, a table tells by a byte's low half and
//! another by its high half which buckets it may belong to. So a shuffle looks
//! 32 bytes up at once, and a place where a bucket's bit is left over all four
//! bytes is worth a look:
//!
//! ```text
//!  32 bytes ──► 4 × (low half & high half) ──► bits of buckets ──► the windows of the bucket, byte by byte ──► hit
//!         └───► line feeds counted on the way
//! ```
//!
//! The tables accept a few fingerprints too many (any low half with any high
//! half); the windows themselves are exact. This is the idea of Hyperscan's
//! Teddy, over byte classes in place of strings. Without AVX2 the same tables
//! are looked up byte by byte.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::bytes::{ByteSet, frequency};
use crate::windows::{WINDOW_BYTES, Window};

/// Bytes of a fingerprint.
const FINGERPRINT: usize = 4;

/// Bits of the two groups of tables.
const BUCKETS: usize = 16;

/// A fingerprint begins at most this far behind its window's first class.
const SHIFT_MAX: usize = 4;

/// Bytes around the start of a fingerprint that a window may look at: from `SHIFT_MAX` + 1 before it.
const PLACES: usize = SHIFT_MAX + 1 + WINDOW_BYTES + 2;

/// A text is swept in pieces of this size, whose places stay in the processor's nearest cache.
const PIECE_BYTES: usize = 4096;

/// Bytes around a place that are read at once, and how many of them are before it.
const AROUND: usize = 16;
const AROUND_BEFORE: usize = SHIFT_MAX + 1;

/// Classes by which places are sifted.
const SIEVE: usize = 6;

/// The text goes on with this outside of the block, for windows at its ends.
const OUTSIDE: u8 = b'\n';

/// A window that stands somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The place of the cut: the first byte of the window behind its lead.
    pub at: usize,
    /// The index of the window.
    pub window: usize,
    /// Line feeds before `at`.
    pub line_feeds: u64,
}

/// For each place of a fingerprint, a table of sixteen bytes, twice.
type WideTables = [[u8; 32]; FINGERPRINT];

/// Finds any of some windows.
pub struct Finder {
    /// For each place of a fingerprint, the buckets by the low half of the byte and by its high half.
    low: [[u16; 16]; FINGERPRINT],
    high: [[u16; 16]; FINGERPRINT],
    /// The same for each group of eight buckets, as a processor wants them that looks 32 bytes up at once.
    tables: [(WideTables, WideTables); BUCKETS / 8],
    buckets: Vec<Bucket>,
}

/// The windows that share a bit, as bits of words: a window is at a place when its bit is left over all bytes.
struct Bucket {
    /// Up to 64 windows each.
    words: Vec<Word>,
    sieve: Sieve,
}

/// The classes of a bucket that tell most, small enough for the nearest cache:
/// a window's bit is its number modulo eight.
struct Sieve {
    /// Counted from [`AROUND_BEFORE`] before the fingerprint.
    offsets: [usize; SIEVE],
    accepts: [[u8; 256]; SIEVE],
}

impl Sieve {
    fn new(words: &[Word]) -> Sieve {
        let mut sieve = Sieve { offsets: [0; SIEVE], accepts: [[u8::MAX; 256]; SIEVE] };
        // Only a bucket of one word is sifted by it.
        let [Word { places, .. }] = words else { return sieve };
        for (index, (place, accepts)) in places.iter().take(SIEVE).enumerate() {
            sieve.offsets[index] = (place + AROUND_BEFORE as isize) as usize;
            for (byte, windows) in accepts.iter().enumerate() {
                sieve.accepts[index][byte] = windows.to_le_bytes().into_iter().fold(0, |all, bits| all | bits);
            }
        }
        sieve
    }
}

struct Word {
    /// Window index, and how far its cut is behind the start of the fingerprint.
    windows: Vec<(usize, isize)>,
    /// The places that tell windows apart, counted from the start of the
    /// fingerprint, those that tell most first, and which windows accept each byte there.
    places: Vec<(isize, Box<[u64; 256]>)>,
}

impl Finder {
    /// A finder for these windows.
    pub fn new(windows: &[Window]) -> Finder {
        let mut placed: Vec<Placed> = windows.iter().map(Placed::new).collect();
        let members = share_out(&mut placed);
        let mut finder = Finder {
            low: [[0; 16]; FINGERPRINT],
            high: [[0; 16]; FINGERPRINT],
            tables: Default::default(),
            buckets: Vec::new(),
        };
        for (bit, members) in members.iter().enumerate() {
            for &member in members {
                for (place, (low, high)) in placed[member].closure(placed[member].shift).into_iter().enumerate() {
                    for half in 0..16 {
                        finder.low[place][half] |= (low >> half & 1) << bit;
                        finder.high[place][half] |= (high >> half & 1) << bit;
                    }
                }
            }
            finder.buckets.push(Bucket::new(members, &placed));
        }
        for (group, (low, high)) in finder.tables.iter_mut().enumerate() {
            let widen = |halves: &[u16; 16]| std::array::from_fn(|lane| (halves[lane % 16] >> (8 * group)) as u8);
            *low = finder.low.each_ref().map(widen);
            *high = finder.high.each_ref().map(widen);
        }
        finder
    }

    /// Tells every window of `text`, in the order of their fingerprints. The
    /// bytes around the text are taken for line feeds. It may have up to 4 GiB.
    pub fn find(&self, text: &[u8], places: &mut Places, on_hit: impl FnMut(Hit)) {
        #[cfg(target_arch = "x86_64")]
        if avx2::is_there() {
            return self.find_by(avx2::sweep, text, places, on_hit);
        }
        self.find_by(|_, _, _, _, _| {}, text, places, on_hit);
    }

    /// The same, where `sweep_most` may sweep most of a piece and leaves the rest.
    fn find_by(
        &self,
        sweep_most: impl Fn(&Finder, &[u8], usize, &mut Sweep, &mut Places),
        text: &[u8],
        places: &mut Places,
        mut on_hit: impl FnMut(Hit),
    ) {
        // A lead may stand before the text.
        self.look(text, -1, self.buckets_at(text, -1), 0, &mut on_hit);
        let mut sweep = Sweep::default();
        while sweep.at < text.len() {
            places.count = 0;
            let piece_end = text.len().min(sweep.at + PIECE_BYTES);
            sweep_most(self, text, piece_end, &mut sweep, places);
            self.sweep(text, piece_end, &mut sweep, places);
            for &Place { at, line_feeds, buckets } in self.sift(text, places) {
                self.look(text, at as isize, buckets, u64::from(line_feeds), &mut on_hit);
            }
        }
    }

    /// Gathers the places up to `piece_end` that the tables accept, byte by byte.
    fn sweep(&self, text: &[u8], piece_end: usize, sweep: &mut Sweep, places: &mut Places) {
        while sweep.at < piece_end {
            let at = sweep.at;
            let buckets = self.buckets_at(text, at as isize);
            places.add(Place { at: at as u32, line_feeds: sweep.line_feeds, buckets });
            sweep.line_feeds += u32::from(text[at] == b'\n');
            sweep.at += 1;
        }
    }

    fn buckets_at(&self, text: &[u8], at: isize) -> u16 {
        (0..FINGERPRINT).fold(u16::MAX, |buckets, place| {
            let byte = byte_at(text, at + place as isize);
            buckets & self.low[place][usize::from(byte & 15)] & self.high[place][usize::from(byte >> 4)]
        })
    }

    /// Leaves the places at which some window may be by its rarest classes.
    /// Most are none, and no branch depends on which, so none is mispredicted.
    fn sift<'p>(&self, text: &[u8], places: &'p mut Places) -> &'p [Place] {
        let mut left = 0;
        for index in 0..places.count {
            let place = places.list[index];
            let bucket = &self.buckets[place.buckets.trailing_zeros() as usize];
            let around =
                (place.at as usize).checked_sub(AROUND_BEFORE).and_then(|start| text[start..].first_chunk::<AROUND>());
            let accepted = match around {
                Some(around) => (0..SIEVE).fold(u8::MAX, |accepted, index| {
                    let byte = around[bucket.sieve.offsets[index] % AROUND];
                    accepted & bucket.sieve.accepts[index][usize::from(byte)]
                }),
                None => u8::MAX,
            };
            // The sieve speaks of one bucket.
            let may_be = (accepted != 0) | !place.buckets.is_power_of_two();
            places.list[left] = place;
            left += usize::from(may_be);
        }
        &places.list[..left]
    }

    /// Tells the windows of `buckets` whose fingerprint is at `at`, which has `line_feeds` before it.
    fn look(&self, text: &[u8], at: isize, buckets: u16, line_feeds: u64, on_hit: &mut impl FnMut(Hit)) {
        let mut left = buckets;
        while left != 0 {
            let bucket = &self.buckets[left.trailing_zeros() as usize];
            left &= left - 1;
            for word in &bucket.words {
                let mut accepted = u64::MAX;
                for (place, accepts) in &word.places {
                    accepted &= accepts[usize::from(byte_at(text, at + place))];
                    if accepted == 0 {
                        break;
                    }
                }
                while accepted != 0 {
                    let (window, shift) = word.windows[accepted.trailing_zeros() as usize];
                    accepted &= accepted - 1;
                    if let Ok(place) = usize::try_from(at + shift)
                        && place < text.len()
                    {
                        // Between the cut and the fingerprint there is no line feed, but the lead may be one.
                        let lead = u64::from(shift == 1 && at >= 0 && text[at as usize] == b'\n');
                        on_hit(Hit { at: place, window, line_feeds: line_feeds + lead });
                    }
                }
            }
        }
    }
}

fn byte_at(text: &[u8], at: isize) -> u8 {
    usize::try_from(at).ok().and_then(|at| text.get(at).copied()).unwrap_or(OUTSIDE)
}

/// How far a text has been swept.
#[derive(Default)]
struct Sweep {
    at: usize,
    /// Before `at`.
    line_feeds: u32,
}

/// A place that the tables accept.
#[derive(Clone, Copy, Default)]
struct Place {
    at: u32,
    line_feeds: u32,
    buckets: u16,
}

/// Room for the places of one piece of a text.
pub struct Places {
    /// One more than there can be, for [`Places::add`] writes before it knows.
    list: Box<[Place; PIECE_BYTES + 1]>,
    count: usize,
}

impl Default for Places {
    fn default() -> Self {
        Places { list: Box::new([Place::default(); PIECE_BYTES + 1]), count: 0 }
    }
}

impl Places {
    /// Adds a place where it has some bucket.
    #[inline]
    fn add(&mut self, place: Place) {
        self.list[self.count] = place;
        self.count += usize::from(place.buckets != 0);
    }
}

/// A window as a row of classes, of which the first is the lead.
struct Placed {
    row: Vec<ByteSet>,
    /// Where the fingerprint begins in `row`.
    shift: usize,
}

impl Placed {
    fn new(window: &Window) -> Placed {
        let lead = window.lead.unwrap_or(ByteSet::ALL);
        Placed { row: std::iter::once(lead).chain(window.classes.iter().copied()).collect(), shift: 0 }
    }

    fn class(&self, index: usize) -> &ByteSet {
        self.row.get(index).unwrap_or(&ByteSet::ALL)
    }

    /// Where a fingerprint may begin. A lead is the only byte of one that may
    /// be of another line, so one that begins later ends with the row.
    fn shifts(&self) -> std::ops::RangeInclusive<usize> {
        let first = usize::from(self.row[0] == ByteSet::ALL);
        first..=SHIFT_MAX.min(self.row.len().saturating_sub(FINGERPRINT).max(first))
    }

    fn closure(&self, shift: usize) -> Closure {
        std::array::from_fn(|place| halves(self.class(shift + place)))
    }
}

/// For each place of a fingerprint, the halves of bytes that the tables accept.
type Closure = [(u16, u16); FINGERPRINT];

fn halves(class: &ByteSet) -> (u16, u16) {
    class.iter().fold((0, 0), |(low, high), byte| (low | 1 << (byte & 15), high | 1 << (byte >> 4)))
}

fn union(one: &Closure, other: &Closure) -> Closure {
    std::array::from_fn(|place| (one[place].0 | other[place].0, one[place].1 | other[place].1))
}

/// Chooses where fingerprints begin and shares windows out to buckets, so that
/// the tables accept as little of a log as can be had: of all buckets, the two
/// that cost least together become one until few enough are left.
fn share_out(placed: &mut [Placed]) -> Vec<Vec<usize>> {
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
        members.retain(|(window, _)| !is_placed[*window]);
        for &(window, shift) in &members {
            is_placed[window] = true;
            placed[window].shift = shift;
        }
        groups.push(Group { closure, frequency, members });
    }
    groups.sort_by(|one, other| other.frequency.total_cmp(&one.frequency));
    let mut buckets: Vec<Vec<usize>> = vec![Vec::new(); BUCKETS];
    let mut closures: [Option<Closure>; BUCKETS] = [None; BUCKETS];
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

impl Bucket {
    fn new(members: &[usize], placed: &[Placed]) -> Bucket {
        let words: Vec<Word> = members.chunks(64).map(|members| Word::new(members, placed)).collect();
        Bucket { sieve: Sieve::new(&words), words }
    }
}

impl Word {
    fn new(members: &[usize], placed: &[Placed]) -> Word {
        let class_at = |member: usize, place: isize| {
            let index = usize::try_from(place + placed[member].shift as isize);
            index.map_or(&ByteSet::ALL, |index| placed[member].class(index))
        };
        let first = -(SHIFT_MAX as isize);
        let mut places: Vec<(f64, isize)> = (first..first + PLACES as isize)
            .filter(|&place| members.iter().any(|&member| *class_at(member, place) != ByteSet::ALL))
            .map(|place| (members.iter().map(|&member| class_at(member, place).frequency()).sum(), place))
            .collect();
        places.sort_by(|one, other| one.0.total_cmp(&other.0));
        let accepts = |place: isize| {
            let mut accepts = Box::new([0; 256]);
            for (number, &member) in members.iter().enumerate() {
                class_at(member, place).iter().for_each(|byte| accepts[usize::from(byte)] |= 1 << number);
            }
            accepts
        };
        Word {
            // A row begins with the lead, one byte before the cut.
            windows: members.iter().map(|&member| (member, 1 - placed[member].shift as isize)).collect(),
            places: places.into_iter().map(|(_, place)| (place, accepts(place))).collect(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Thirty-two places at once.

    use std::arch::x86_64::*;

    use super::{FINGERPRINT, Finder, Place, Places, Sweep};

    /// Places that are looked at together.
    const LANES: usize = 32;

    pub fn is_there() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("bmi1")
    }

    /// Sweeps whole groups of lanes, up to `piece_end` or a little before the end of the text.
    pub fn sweep(finder: &Finder, text: &[u8], piece_end: usize, sweep: &mut Sweep, places: &mut Places) {
        #[expect(unsafe_code, reason = "the caller has asked the processor for these instructions")]
        unsafe {
            match finder.buckets.len() {
                0..=8 => sweep_groups::<1>(finder, text, piece_end, sweep, places),
                _ => sweep_groups::<2>(finder, text, piece_end, sweep, places),
            }
        }
    }

    /// The same for buckets in one or two groups of eight.
    #[target_feature(enable = "avx2,popcnt,bmi1")]
    fn sweep_groups<const GROUPS: usize>(
        finder: &Finder,
        text: &[u8],
        piece_end: usize,
        sweep: &mut Sweep,
        places: &mut Places,
    ) {
        let mut low = [[_mm256_setzero_si256(); FINGERPRINT]; GROUPS];
        let mut high = low;
        for group in 0..GROUPS {
            for place in 0..FINGERPRINT {
                low[group][place] = load(&finder.tables[group].0[place]);
                high[group][place] = load(&finder.tables[group].1[place]);
            }
        }
        let half = _mm256_set1_epi8(0x0f);
        let feed = _mm256_set1_epi8(b'\n' as i8);
        let zero = _mm256_setzero_si256();
        let mut buckets = [[0; LANES]; GROUPS];
        let (mut at, mut line_feeds) = (sweep.at, sweep.line_feeds);
        while at + LANES <= piece_end
            && let Some(window) = text[at..].first_chunk::<{ LANES + FINGERPRINT - 1 }>()
        {
            let mut found = [_mm256_set1_epi8(-1); GROUPS];
            let mut feeds = 0;
            for place in 0..FINGERPRINT {
                let Some(bytes) = window[place..].first_chunk::<LANES>() else { break };
                let bytes = load(bytes);
                if place == 0 {
                    feeds = _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, feed)) as u32;
                }
                let low_half = _mm256_and_si256(bytes, half);
                let high_half = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), half);
                for group in 0..GROUPS {
                    let accepted = _mm256_and_si256(
                        _mm256_shuffle_epi8(low[group][place], low_half),
                        _mm256_shuffle_epi8(high[group][place], high_half),
                    );
                    found[group] = _mm256_and_si256(found[group], accepted);
                }
            }
            let any = if GROUPS == 2 { _mm256_or_si256(found[0], found[1]) } else { found[0] };
            let mut lanes = !(_mm256_movemask_epi8(_mm256_cmpeq_epi8(any, zero)) as u32);
            for group in 0..GROUPS {
                store(&mut buckets[group], found[group]);
            }
            // Whether a group has a place is hard to predict, so the first is always taken, and left again
            // where there is none; a second is rare.
            loop {
                let lane = lanes.trailing_zeros() as usize % LANES;
                let before = (feeds & ((1 << lane) - 1)).count_ones();
                places.add(Place {
                    at: (at + lane) as u32,
                    line_feeds: line_feeds + before,
                    buckets: (0..GROUPS).fold(0, |bits, group| bits | u16::from(buckets[group][lane]) << (8 * group)),
                });
                lanes &= lanes.wrapping_sub(1);
                if lanes == 0 {
                    break;
                }
            }
            line_feeds += feeds.count_ones();
            at += LANES;
        }
        *sweep = Sweep { at, line_feeds };
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; LANES]) -> __m256i {
        #[expect(unsafe_code, reason = "reads the 32 bytes of the reference, aligned or not")]
        unsafe {
            _mm256_loadu_si256(bytes.as_ptr().cast())
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(bytes: &mut [u8; LANES], value: __m256i) {
        #[expect(unsafe_code, reason = "writes the 32 bytes of the reference, aligned or not")]
        unsafe {
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class() -> impl Strategy<Value = ByteSet> {
        let sets: Vec<&[u8]> = vec![b"a", b"b", b"aA", b"ab", b"0123456789", b"_", b" \t", b"\xff\xfe", b"xyz("];
        prop_oneof![
            9 => prop::sample::select(sets).prop_map(ByteSet::of),
            1 => Just(ByteSet::of(b"b\n").complement()),
        ]
    }

    fn window() -> impl Strategy<Value = Window> {
        let lead = prop::option::of(prop_oneof![Just(ByteSet::WORD.complement()), Just(ByteSet::of(b"\n\xbf"))]);
        (lead, prop::collection::vec(class(), 1..=WINDOW_BYTES)).prop_map(|(lead, classes)| Window {
            lead,
            classes,
            start: Some(0),
            frequency: 0.0,
        })
    }

    /// Every window at every place, one by one.
    fn plainly(windows: &[Window], text: &[u8]) -> Vec<(usize, usize, u64)> {
        let byte = |at: Option<usize>| at.and_then(|at| text.get(at).copied()).unwrap_or(OUTSIDE);
        let mut hits = Vec::new();
        for at in 0..text.len() {
            for (number, window) in windows.iter().enumerate() {
                let lead = window.lead.is_none_or(|lead| lead.contains(byte(at.checked_sub(1))));
                let rest =
                    window.classes.iter().enumerate().all(|(index, class)| class.contains(byte(Some(at + index))));
                if lead && rest {
                    let feeds = text[..at].iter().filter(|&&byte| byte == b'\n').count();
                    hits.push((at, number, feeds as u64));
                }
            }
        }
        hits
    }

    proptest! {
        #[test]
        fn every_way_to_find_windows_finds_what_a_plain_loop_finds(
            windows in prop::collection::vec(window(), 0..100),
            text in prop::collection::vec(prop::sample::select(b"aAbb019_ \t\nxyz(\xff\xfe".to_vec()), 0..300),
            padding in prop::sample::select(vec![0usize, 31, 4096 - 40, 4096 + 7]),
        ) {
            let text = [vec![b'-'; padding], text].concat();
            let finder = Finder::new(&windows);
            let collect = |portably: bool| {
                let (mut hits, mut places) = (Vec::new(), Places::default());
                let on_hit = |Hit { at, window, line_feeds }: Hit| hits.push((at, window, line_feeds));
                match portably {
                    true => finder.find_by(|_, _, _, _, _| {}, &text, &mut places, on_hit),
                    false => finder.find(&text, &mut places, on_hit),
                }
                let lines: Vec<u64> = hits.iter().map(|hit| hit.2).collect();
                assert!(lines.is_sorted(), "hits come line by line");
                hits.sort();
                hits
            };
            let expected = plainly(&windows, &text);
            prop_assert_eq!(collect(false), expected.clone());
            prop_assert_eq!(collect(true), expected);
        }
    }
}
