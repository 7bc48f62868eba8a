//! Finds literals in a block, all at once.
//!
//! Three consecutive bytes of each literal are its *fingerprint*. Literals with similar
//! fingerprints share one of sixteen *buckets*, and a bucket is a bit. Each byte of the
//! fingerprint has two tables of the buckets that accept it: one by the low half of the
//! byte, one by the high half. So a shuffle looks up 32 bytes at once, and a position
//! where a bucket's bit remains after all three bytes is confirmed:
//!
//! ```text
//!  32 bytes ──► 3 × (low half & high half) ──► bits of buckets ──► literals of the bucket, byte by byte ──► candidate
//!         └──► line feeds counted on the way
//! ```
//!
//! This is the idea of Hyperscan's Teddy, with byte classes instead of strings.

#[cfg(target_arch = "x86_64")]
use crate::scan::prefilter::avx2;
use crate::scan::prefilter::positions::{PIECE_BYTES, Position, Positions, Sweep};
use crate::scan::prefilter::tables::{CandidatePosition, Prefilter};

impl Prefilter {
    /// Reports every literal in `text`, in the order of the fingerprints. The bytes
    /// around the text count as line feeds. It may have up to 4 GiB.
    pub fn find(&self, text: &[u8], positions: &mut Positions, on_candidate: impl FnMut(CandidatePosition)) {
        #[cfg(target_arch = "x86_64")]
        if avx2::is_available() {
            return self.find_by(avx2::sweep, text, positions, on_candidate);
        }
        self.find_by(|_, _, _, _, _| {}, text, positions, on_candidate);
    }

    /// The same; `sweep_most` may sweep most of a piece and leave the rest.
    fn find_by(
        &self,
        sweep_most: impl Fn(&Prefilter, &[u8], usize, &mut Sweep, &mut Positions),
        text: &[u8],
        positions: &mut Positions,
        mut on_candidate: impl FnMut(CandidatePosition),
    ) {
        // A lead may be before the text.
        self.confirm(text, -1, self.buckets_at(text, -1), 0, &mut on_candidate);
        let mut sweep = Sweep::default();
        while sweep.at < text.len() {
            positions.count = 0;
            let piece_end = text.len().min(sweep.at + PIECE_BYTES);
            sweep_most(self, text, piece_end, &mut sweep, positions);
            self.sweep(text, piece_end, &mut sweep, positions);
            for &Position { at, line_feeds, buckets } in &positions.list[..positions.count] {
                self.confirm(text, at as isize, buckets, u64::from(line_feeds), &mut on_candidate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scan::prefilter::byte_set::ByteSet;
    use crate::scan::prefilter::literals::{Distance, LITERAL_BYTES, Literal};
    use crate::scan::prefilter::tables::OUTSIDE;

    fn class() -> impl Strategy<Value = ByteSet> {
        let sets: Vec<&[u8]> = vec![b"a", b"b", b"aA", b"ab", b"0123456789", b"_", b" \t", b"\xff\xfe", b"xyz("];
        prop_oneof![
            9 => prop::sample::select(sets).prop_map(ByteSet::of),
            1 => Just(ByteSet::of(b"b\n").complement()),
        ]
    }

    fn literal() -> impl Strategy<Value = Literal> {
        let lead = prop::option::of(prop_oneof![Just(ByteSet::WORD.complement()), Just(ByteSet::of(b"\n\xbf"))]);
        (lead, prop::collection::vec(class(), 1..=LITERAL_BYTES)).prop_map(|(lead, classes)| Literal {
            lead,
            classes,
            start: Distance::START,
            frequency: 0.0,
        })
    }

    /// Tries every literal at every position, one by one.
    fn plain_loop(literals: &[Literal], text: &[u8]) -> Vec<(usize, usize, u64)> {
        let byte = |at: Option<usize>| at.and_then(|at| text.get(at).copied()).unwrap_or(OUTSIDE);
        let mut candidates = Vec::new();
        for at in 0..text.len() {
            for (number, literal) in literals.iter().enumerate() {
                let lead = literal.lead.is_none_or(|lead| lead.contains(byte(at.checked_sub(1))));
                let rest =
                    literal.classes.iter().enumerate().all(|(index, class)| class.contains(byte(Some(at + index))));
                if lead && rest {
                    let feeds = text[..at].iter().filter(|&&byte| byte == b'\n').count();
                    candidates.push((at, number, feeds as u64));
                }
            }
        }
        candidates
    }

    proptest! {
        #[test]
        fn every_way_to_find_literals_finds_what_a_plain_loop_finds(
            literals in prop::collection::vec(literal(), 0..100),
            text in prop::collection::vec(prop::sample::select(b"aAbb019_ \t\nxyz(\xff\xfe".to_vec()), 0..300),
            padding in prop::sample::select(vec![0usize, 31, 4096 - 40, 4096 + 7]),
        ) {
            let text = [vec![b'-'; padding], text].concat();
            let prefilter = Prefilter::new(&literals);
            let collect = |portably: bool| {
                let (mut candidates, mut positions) = (Vec::new(), Positions::default());
                let on_candidate = |CandidatePosition { at, literal, line_feeds }: CandidatePosition| {
                    candidates.push((at, literal, line_feeds));
                };
                match portably {
                    true => prefilter.find_by(|_, _, _, _, _| {}, &text, &mut positions, on_candidate),
                    false => prefilter.find(&text, &mut positions, on_candidate),
                }
                let lines: Vec<u64> = candidates.iter().map(|candidate| candidate.2).collect();
                assert!(lines.is_sorted(), "candidates come line by line");
                candidates.sort();
                candidates
            };
            let expected = plain_loop(&literals, &text);
            prop_assert_eq!(collect(false), expected.clone());
            prop_assert_eq!(collect(true), expected);
        }
    }
}
