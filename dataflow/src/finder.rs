//! Finds windows in a block, all at once.
//!
//! Of each window three bytes in a row are its *fingerprint*. Windows with
//! alike fingerprints share one of sixteen *buckets*, and a bucket is a bit: for
//! each place of the fingerprint, a table tells by a byte's low half and
//! another by its high half which buckets it may belong to. So a shuffle looks
//! 32 bytes up at once, and a place where a bucket's bit is left over all three
//! bytes is worth a look:
//!
//! ```text
//!  32 bytes ──► 3 × (low half & high half) ──► bits of buckets ──► the windows of the bucket, byte by byte ──► hit
//!         └───► line feeds counted on the way
//! ```
//!
//! The tables accept a few fingerprints too many (any low half with any high
//! half); the windows themselves are exact. This is the idea of Hyperscan's
//! Teddy, over byte classes in place of strings. Without AVX2 the same tables
//! are looked up byte by byte.

#[cfg(target_arch = "x86_64")]
use crate::avx2;
use crate::buckets::{BUCKETS, FINGERPRINT, Placed, SHIFT_MAX, share_out};
use crate::bytes::ByteSet;
use crate::windows::{WINDOW_BYTES, Window};

/// Bytes around the start of a fingerprint that a window may look at: from `SHIFT_MAX` + 1 before it.
const PLACES: usize = SHIFT_MAX + 1 + WINDOW_BYTES + 2;

/// A text is swept in pieces of this size (bytes), whose places stay in the processor's nearest cache.
pub const PIECE_BYTES: usize = 4096;

/// Bytes around a place that are read at once, and how many of them are before it.
const AROUND: usize = 16;
const AROUND_BEFORE: usize = SHIFT_MAX + 1;

/// Classes by which places are sifted.
const SIEVE: usize = 4;

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
    pub(crate) tables: [(WideTables, WideTables); BUCKETS / 8],
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
        self.confirm(text, -1, self.buckets_at(text, -1), 0, &mut on_hit);
        let mut sweep = Sweep::default();
        while sweep.at < text.len() {
            places.count = 0;
            let piece_end = text.len().min(sweep.at + PIECE_BYTES);
            sweep_most(self, text, piece_end, &mut sweep, places);
            self.sweep(text, piece_end, &mut sweep, places);
            for &Place { at, line_feeds, buckets } in &places.list[..places.count] {
                self.confirm(text, at as isize, buckets, u64::from(line_feeds), &mut on_hit);
            }
        }
    }

    /// How many buckets there are.
    pub(crate) fn bucket_count(&self) -> usize {
        self.buckets.len()
    }

    /// Gathers the places up to `piece_end` at which a window may be, byte by byte.
    fn sweep(&self, text: &[u8], piece_end: usize, sweep: &mut Sweep, places: &mut Places) {
        while sweep.at < piece_end {
            let at = sweep.at;
            let place =
                Place { at: at as u32, line_feeds: sweep.line_feeds, buckets: self.buckets_at(text, at as isize) };
            if place.buckets != 0 && self.may_be(text, place) {
                places.list[places.count] = place;
                places.count += 1;
            }
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

    /// Whether some window may be at a place by its rarest classes. Most are none, and
    /// no branch depends on which, so none is mispredicted.
    #[inline(always)]
    pub(crate) fn may_be(&self, text: &[u8], place: Place) -> bool {
        let sieve = &self.buckets[place.buckets.trailing_zeros() as usize].sieve;
        let around =
            (place.at as usize).checked_sub(AROUND_BEFORE).and_then(|start| text[start..].first_chunk::<AROUND>());
        let accepted = match around {
            Some(around) => (0..SIEVE).fold(u8::MAX, |accepted, index| {
                accepted & sieve.accepts[index][usize::from(around[sieve.offsets[index] % AROUND])]
            }),
            None => u8::MAX,
        };
        // The sieve speaks of one bucket.
        (accepted != 0) | !place.buckets.is_power_of_two()
    }

    /// Tells the windows of `buckets` whose fingerprint is at `at`, which has `line_feeds` before it.
    fn confirm(&self, text: &[u8], at: isize, buckets: u16, line_feeds: u64, on_hit: &mut impl FnMut(Hit)) {
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
pub struct Sweep {
    /// The next place.
    pub at: usize,
    /// Before `at`.
    pub line_feeds: u32,
}

/// A place that the tables accept.
#[derive(Clone, Copy, Default)]
pub struct Place {
    /// Where a fingerprint may begin.
    pub at: u32,
    /// Before `at`.
    pub line_feeds: u32,
    /// The buckets that may be there, as bits.
    pub buckets: u16,
}

/// Room for the places of one piece of a text.
pub struct Places {
    /// One more than there can be, to write before it is known whether it counts.
    pub(crate) list: Box<[Place; PIECE_BYTES + 1]>,
    pub(crate) count: usize,
    #[cfg(target_arch = "x86_64")]
    pub(crate) strides: avx2::Strides,
}

impl Default for Places {
    fn default() -> Self {
        Places {
            list: Box::new([Place::default(); PIECE_BYTES + 1]),
            count: 0,
            #[cfg(target_arch = "x86_64")]
            strides: avx2::Strides::default(),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::windows::Behind;
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
            start: Behind::START,
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
