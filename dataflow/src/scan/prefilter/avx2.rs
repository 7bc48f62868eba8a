//! Sweeps 32 positions at once.

use std::arch::x86_64::*;

use crate::scan::prefilter::buckets::FINGERPRINT;
use crate::scan::prefilter::positions::{LANES, Position, Positions, Sweep};
use crate::scan::prefilter::tables::Prefilter;

pub fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("bmi1")
}

/// Sweeps whole strides, up to `piece_end` or a little before the end of the text.
pub fn sweep(prefilter: &Prefilter, text: &[u8], piece_end: usize, sweep: &mut Sweep, positions: &mut Positions) {
    #[expect(unsafe_code, reason = "the caller has checked that the processor has these instructions")]
    unsafe {
        match prefilter.bucket_count() {
            0..=8 => sweep_groups::<1>(prefilter, text, piece_end, sweep, positions),
            _ => sweep_groups::<2>(prefilter, text, piece_end, sweep, positions),
        }
    }
}

/// The same for buckets in one or two groups of eight.
#[target_feature(enable = "avx2,popcnt,bmi1")]
fn sweep_groups<const GROUPS: usize>(
    prefilter: &Prefilter,
    text: &[u8],
    piece_end: usize,
    sweep: &mut Sweep,
    positions: &mut Positions,
) {
    let mut low = [[_mm256_setzero_si256(); FINGERPRINT]; GROUPS];
    let mut high = low;
    for group in 0..GROUPS {
        for position in 0..FINGERPRINT {
            low[group][position] = load(&prefilter.tables[group].0[position]);
            high[group][position] = load(&prefilter.tables[group].1[position]);
        }
    }
    let half = _mm256_set1_epi8(0x0f);
    let feed = _mm256_set1_epi8(b'\n' as i8);
    let zero = _mm256_setzero_si256();
    let (mut at, mut line_feeds) = (sweep.at, sweep.line_feeds);
    // The last bytes of a text have too few bytes after them.
    let end = piece_end.min((text.len() + 1).saturating_sub(FINGERPRINT));
    let strides = end.saturating_sub(at) / LANES;
    let mut taken = 0;
    for (window, _) in text[at..].windows(LANES + FINGERPRINT - 1).step_by(LANES).zip(0..strides) {
        let Some(stride) = positions.strides.0.get_mut(taken) else { break };
        let mut found = [_mm256_set1_epi8(-1); GROUPS];
        let mut feeds = 0;
        for position in 0..FINGERPRINT {
            let Some(bytes) = window[position..].first_chunk::<LANES>() else { break };
            let bytes = load(bytes);
            if position == 0 {
                feeds = _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, feed)) as u32;
            }
            let low_half = _mm256_and_si256(bytes, half);
            let high_half = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), half);
            for group in 0..GROUPS {
                let accepted = _mm256_and_si256(
                    _mm256_shuffle_epi8(low[group][position], low_half),
                    _mm256_shuffle_epi8(high[group][position], high_half),
                );
                found[group] = _mm256_and_si256(found[group], accepted);
            }
        }
        let any = if GROUPS == 2 { _mm256_or_si256(found[0], found[1]) } else { found[0] };
        let lanes = !(_mm256_movemask_epi8(_mm256_cmpeq_epi8(any, zero)) as u32);
        // Whether a lane is accepted is hard to predict, so a stride is always written, and
        // one without an accepted lane is overwritten.
        for (buckets, found) in stride.buckets.iter_mut().zip(found) {
            store(buckets, found);
        }
        (stride.at, stride.line_feeds, stride.lanes, stride.feeds) = (at as u32, line_feeds, lanes, feeds);
        taken += usize::from(lanes != 0);
        line_feeds += feeds.count_ones();
        at += LANES;
    }
    *sweep = Sweep { at, line_feeds };
    let Positions { list, count, strides } = positions;
    for stride in &strides.0[..taken] {
        let mut lanes = stride.lanes;
        loop {
            let lane = lanes.trailing_zeros() as usize % LANES;
            lanes &= lanes.wrapping_sub(1);
            let before = (stride.feeds & ((1 << lane) - 1)).count_ones();
            let position = Position {
                at: stride.at + lane as u32,
                line_feeds: stride.line_feeds + before,
                buckets: (0..GROUPS)
                    .fold(0, |bits, group| bits | u16::from(stride.buckets[group][lane]) << (8 * group)),
            };
            list[*count] = position;
            *count += usize::from(prefilter.may_be(text, position));
            if lanes == 0 {
                break;
            }
        }
    }
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
